"""Whether a committed stage meets its gates as the chain states them now."""

from __future__ import annotations

from distillchain_api.gates import missed_gate, student_sentence, teacher_sentence
from distillchain_api.wire.manifest import Manifest
from distillchain_api.wire.work_order import WorkOrder


def gate_problem(order: WorkOrder, manifest: Manifest, *, kept: str) -> str | None:
    """Why the committed models may not teach; None when they meet their gates.

    Args:
        kept: where the checkpoint is, as the end of the sentence.
    """
    metric = order.task.metric
    student = manifest.student.metrics.validation[metric]
    teacher = manifest.teacher.metrics.validation[metric] if manifest.teacher else None
    miss = missed_gate(order, student, teacher)
    if miss is None:
        return None
    if miss.of_teacher:
        uri = order.teacher.model or order.teacher.name if order.teacher else ""
        return teacher_sentence(miss, order, uri=uri)
    return student_sentence(miss, order, student, teacher, kept=kept)
