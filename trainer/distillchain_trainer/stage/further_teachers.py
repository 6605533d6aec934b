"""The teachers of a stage beside the stage before: each is loaded, measured, asked and freed before the next one.

What a teacher answers is stored under its own digest. If a teacher is added to a stage, it alone computes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

from distillchain_api.gates import teacher_remedy
from distillchain_api.wire.work_order import FurtherTeacher, WorkOrder
from distillchain_trainer.engine.passes.node_array import NodeArray
from distillchain_trainer.engine.passes.teacher_average import Mean, MeanOf, average, mean_outputs
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs
from distillchain_trainer.models.checkpoints import Checkpoint, forget
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.objectives import load_objective
from distillchain_trainer.stage.ask_teacher import ask
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.measure import MeasuredTeacher, Measurer, Origin
from distillchain_trainer.stage.prepare import Prepared, further_teacher_folder, load_teacher
from distillchain_trainer.stage.run_stats import RunStats
from distillchain_trainer.tasks.interface import TaskAdapter

log = logging.getLogger(__name__)


def measure_further_teachers(
    context: Context, prepared: Prepared, measurer: Measurer, *, is_asked: bool
) -> tuple[tuple[MeasuredTeacher, ...], list[TeacherOutputs]]:
    """The other teachers measured and checked, and what they answer for the training rows.

    Call it when the first teacher has left the device.

    Args:
        is_asked: the training needs their answers; otherwise they are only measured.
    Raises: GateNotMet for one that is not better than chance; LabelMismatch; CheckpointInvalid; StopRequested.
    """
    found = list(_one_by_one(context, prepared, measurer, is_asked=is_asked))
    return tuple(teacher for teacher, _ in found), [outputs for _, outputs in found if outputs is not None]


def _one_by_one(
    context: Context, prepared: Prepared, measurer: Measurer, *, is_asked: bool
) -> Iterator[tuple[MeasuredTeacher, TeacherOutputs | None]]:
    teachers = zip(context.order.further_teachers, prepared.further_teachers, strict=True)
    for number, (other, checkpoint) in enumerate(teachers):
        loaded = load_teacher(context, prepared.task.load_further_teacher, checkpoint)
        measured = _measure(context, prepared, measurer, other, checkpoint, loaded)
        outputs = _ask(context, prepared, measurer.stats, checkpoint, loaded) if is_asked else None
        yield measured, outputs
        # The memory of one teacher at a time. Not `del`: the task may still refer to it, for its tokenizer.
        loaded.free()
        if context.world.leads_node:
            # Not `checkpoint.folder`, which may be a folder of the user.
            forget(further_teacher_folder(context, number))


def _measure(
    context: Context,
    prepared: Prepared,
    measurer: Measurer,
    other: FurtherTeacher,
    checkpoint: Checkpoint,
    loaded: Loaded,
) -> MeasuredTeacher:
    origin = Origin(checkpoint.uri, checkpoint.revision, other.teacher.digest, checkpoint.weight_bytes)
    facts, measured = measurer.facts(loaded, origin, prepared.data.splits, "MeasureTeacher", checkpoint=checkpoint)
    validation = measured["validation"]
    is_outside = other.teacher.name == other.teacher.model
    remedy = "fine-tune it on the task first" if is_outside else teacher_remedy(other.teacher)
    prepared.task.check_teacher(loaded, validation, uri=checkpoint.uri, remedy=remedy)
    for sentence in validation.warnings:
        context.warnings.add(f"teacher {checkpoint.uri}: {sentence}")
    log.info("teacher measured", extra={"teacher": checkpoint.uri, **facts.metrics.validation})
    return MeasuredTeacher(facts, measured)


def _ask(
    context: Context, prepared: Prepared, stats: RunStats, checkpoint: Checkpoint, loaded: Loaded
) -> TeacherOutputs:
    # A folder of its own: the files of the teachers before are still mapped.
    folder = f"logits-{checkpoint.digest[:16]}"
    outputs = ask(context, prepared.task, prepared.data, loaded, checkpoint, stats, folder=folder)
    stats.logits_reused = stats.logits_reused and outputs.reused
    return outputs


def mean_of_teachers(context: Context, task: TaskAdapter, teachers: list[TeacherOutputs]) -> TeacherOutputs:
    """The mean of all teachers, by the shares of the work order."""
    file = NodeArray(context.scratch("logits") / "mean-of-teachers.f32", context.world)
    return average(teachers, context.order.shares, mean_of=_mean_of(context.order, task), file=file)


def _mean_of(order: WorkOrder, task: TaskAdapter) -> MeanOf:
    assert order.distillation is not None
    kind, temperature = order.task.outputs, order.distillation.temperature
    if kind == "Tokens":
        return partial(task.mean_of_predictions, temperature=temperature)
    # An objective without a temperature compares outputs as numbers, and so it is their mean that it needs.
    mean: Mean = kind if load_objective(order.distillation.objective).uses_temperature else "Numbers"
    return partial(mean_outputs, mean=mean, temperature=temperature)
