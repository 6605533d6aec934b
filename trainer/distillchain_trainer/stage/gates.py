"""The gates of a stage as errors. Imports no torch, because the command line checks gates too."""

from __future__ import annotations

from distillchain_api.gates import missed_student_gate, missed_teacher_gate, student_sentence, teacher_sentence
from distillchain_api.wire.manifest import ModelFacts
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.errors import GateNotMet


def check_gates(order: WorkOrder, student: ModelFacts, teacher: ModelFacts | None, *, kept: str) -> None:
    """The gates of the root teacher and of the stage's student, as the work order has them now.

    Args:
        kept: where the student is, for the message.
    Raises: GateNotMet.
    """
    metric = order.task.metric
    ours = student.metrics.validation[metric]
    theirs = teacher.metrics.validation[metric] if teacher else None
    # Checked before the training too, but the gate may be tighter now than when this stage was committed.
    if teacher is not None and (miss := missed_teacher_gate(order, theirs)):
        raise GateNotMet(teacher_sentence(miss, order, uri=teacher.source))
    if miss := missed_student_gate(order, ours, theirs):
        raise GateNotMet(student_sentence(miss, order, ours, theirs, kept=kept))
