"""Everything that needs a model to compute: the teacher measured, its outputs, and the training of the student."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from distillchain_api.gates import missed_teacher_gate, teacher_remedy, teacher_sentence
from distillchain_api.resource.training import Training
from distillchain_api.wire.manifest import ModelFacts
from distillchain_trainer.data.split import TaskData
from distillchain_trainer.engine.device.experts import compute_experts_in_bfloat16
from distillchain_trainer.engine.device.precision import (
    apply_tf32,
    best_device,
    choose_attention_kernels,
    compute_head_in_float32,
)
from distillchain_trainer.engine.device.sharding import sharded_copy
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.saved_state import ResumeIndex, ResumeStates
from distillchain_trainer.engine.training.training_state import changed_processes, load_weights
from distillchain_trainer.errors import GateNotMet
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage.ask_teacher import free_teacher, teacher_outputs
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.further_teachers import mean_of_teachers, measure_further_teachers
from distillchain_trainer.stage.hidden_term import check_hidden_term
from distillchain_trainer.stage.measure import MeasuredTeacher, Measurer, Origin
from distillchain_trainer.stage.prepare import LoadedTeacher, Prepared
from distillchain_trainer.stage.recalled import Recalled, check_same_rows
from distillchain_trainer.stage.run_stats import RunStats
from distillchain_trainer.stage.train_student import StudentTraining
from distillchain_trainer.tasks.interface import Measurement, TaskAdapter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _SavedState:
    """Where an earlier attempt stopped, and the folder of its files."""

    index: ResumeIndex
    folder: Path


@dataclass(frozen=True)
class Computed:
    """A trained student and what is known of its making."""

    student: Loaded
    teacher: MeasuredTeacher | None
    stats: RunStats
    history: History
    states: ResumeStates
    further_teachers: tuple[MeasuredTeacher, ...] = ()


def compute(context: Context, prepared: Prepared) -> Computed:
    """Measures the teacher, checks its gate, and trains the student or loads one that was trained before.

    Raises: GateNotMet, LabelMismatch, CheckpointInvalid, TrainingDiverged, OutOfMemory; StopRequested once the state is
        saved; errors of the store.
    """
    # Before anything computes: the teacher's outputs are keyed by it.
    apply_numbers(context.order.training)
    compute_head_in_float32(prepared.student.model, context.order.training.precision)
    compute_experts_in_bfloat16(prepared.student.model, context.order.training.precision)
    check_hidden_term(context, prepared)
    stats = RunStats()
    measurer = Measurer(context, prepared.task, stats)
    # Before the training: a teacher below its gate, or at chance, would waste it.
    teacher = None
    if prepared.teacher is not None:
        teacher = measure_teacher(context, prepared.task, prepared.data, prepared.teacher, measurer)
    # Before a saved state is loaded: a new head would replace its trained one.
    _settle_start(context, prepared, measurer)
    states = ResumeStates(context.store, context.order.digest, context.attempt, source=prepared.source)
    saved = _find_state(context, states)
    history = History.read(saved.folder if saved else None)
    _begin_tracking(context, prepared, saved)
    if saved:
        stats.take_over(saved.index)
        # From here on, a stop reports this step: the next attempt resumes there too.
        context.signals.saved_step = saved.index.step
        for sentence in saved.index.warnings:  # of phases that this attempt may not repeat
            context.warnings.add(sentence)
    # Trained but not committed: the gate was missed, or the attempt was stopped before its commit.
    if saved and saved.index.finished:
        free_teacher(context, prepared.teacher)
        further, _ = measure_further_teachers(context, prepared, measurer, is_asked=False)
        if context.holds_weights:
            load_weights(prepared.student.model, saved.folder)
        log.info("training was finished before; its student is measured again", extra={"step": saved.index.step})
    else:
        stats.logits = []
        # Before the training and not beside it: the teacher can then leave the GPU to the student.
        outputs = _ask_teacher(context, prepared, stats)
        # One teacher at a time on the device, so the others are loaded only now.
        further, others = measure_further_teachers(context, prepared, measurer, is_asked=outputs is not None)
        if outputs is not None and others:
            outputs = mean_of_teachers(context, prepared.task, [outputs, *others])
        if saved and (changed := changed_processes(saved.folder, context.world)):
            context.warnings.add(changed)
        resume_from = (saved.folder, saved.index.step) if saved else None
        StudentTraining(context, prepared, measurer, stats, history, states).run(outputs, resume_from)
    return Computed(prepared.student, teacher, stats, history, states, further)


def _begin_tracking(context: Context, prepared: Prepared, saved: _SavedState | None) -> None:
    teacher, order = prepared.teacher, context.order
    lineage = {"digest": order.digest, "start": prepared.student.start}
    if teacher is not None and order.teacher is not None:
        lineage |= {"teacher": teacher.checkpoint.uri, "teacherWeights": teacher.checkpoint.revision}
        lineage |= {"teacherDigest": order.teacher.digest} if order.teacher.digest else {}
    lineage |= {f"data.{name}": split.sha256 for name, split in prepared.data.facts.items()}
    context.tracking.begin(
        order,
        context.attempt,
        lineage,
        resumed_from=saved.folder if saved else None,
        step=saved.index.step if saved else 0,
        train_s=saved.index.train_s if saved else 0.0,
    )


def apply_numbers(training: Training) -> None:
    """Sets for the whole process what the work order says of float32 on a GPU."""
    apply_tf32(training)
    choose_attention_kernels()


def measure_teacher(
    context: Context, task: TaskAdapter, data: TaskData, teacher: LoadedTeacher, measurer: Measurer
) -> MeasuredTeacher:
    """The teacher measured, or recalled from its pass, and its gate checked. Raises: GateNotMet, LabelMismatch."""
    order, checkpoint = context.order, teacher.checkpoint
    assert order.teacher is not None
    if teacher.recalled is None:
        origin = Origin(checkpoint.uri, checkpoint.revision, order.teacher.digest, checkpoint.weight_bytes)
        found = measurer.facts(teacher.loaded, origin, data.splits, "MeasureTeacher", checkpoint=checkpoint)
    else:
        found = _recall(context, task, data, teacher, teacher.recalled)
    facts, measured = found
    task.remember_teacher(measured)
    value = facts.metrics.validation[order.task.metric]
    miss = missed_teacher_gate(order, value)
    if miss is not None:
        raise GateNotMet(teacher_sentence(miss, order, uri=checkpoint.uri))
    if teacher.recalled is None:
        # After the user's own gate. A teacher without a gate must still beat chance.
        task.check_teacher(
            teacher.loaded, measured["validation"], uri=checkpoint.uri, remedy=teacher_remedy(order.teacher)
        )
    for sentence in measured["validation"].warnings:
        context.warnings.add(f"teacher {checkpoint.uri}: {sentence}")
    how = "teacher measured" if teacher.recalled is None else "teacher recalled from its pass"
    log.info(how, extra={"teacher": checkpoint.uri, **facts.metrics.validation})
    return MeasuredTeacher(facts, measured)


def _recall(
    context: Context, task: TaskAdapter, data: TaskData, teacher: LoadedTeacher, recalled: Recalled
) -> tuple[ModelFacts, dict[str, Measurement]]:
    """What the pass has measured, for the same rows. Raises: CheckpointCorrupt for others."""
    splits = {name: split for name, split in data.splits.items() if name != "train"}
    check_same_rows(context, recalled, {name: split.facts.sha256 for name, split in splits.items()})
    for sentence in recalled.manifest.warnings:
        context.warnings.add(sentence)
    measured = {}
    for name, split in splits.items():
        # A task with items measures what it has encoded.
        task.encode(split, teacher.loaded, check=context.signals.raise_if_requested)
        measured[name] = task.measure(split, recalled.outputs(name))
    return recalled.manifest.teacher, measured


def _settle_start(context: Context, prepared: Prepared, measurer: Measurer) -> None:
    """Measures a student whose head must prove itself before it is trained."""
    student = prepared.student
    if prepared.task.start_is_unproven(student):
        measurable = student
        if context.is_sharded:
            measurable = replace(student, model=sharded_copy(student.model, context.world, device=best_device()))
        measured, _ = measurer.split(
            measurable, prepared.data.validation, "MeasureStudent", checkpoint=prepared.student_start
        )
        if context.holds_weights:  # the other ranks have measured the same, and have no head to replace
            prepared.task.settle_start(student, measured, seed=context.order.training.seed)


def _find_state(context: Context, states: ResumeStates) -> _SavedState | None:
    """The newest state, on each node; rank 0 decides which that is."""
    world, folder = context.world, context.scratch("resume")

    def newest() -> str:
        found = states.load_newest(folder)
        return json.dumps([found[1].name, found[0].to_document()] if found else None)

    found = json.loads(world.from_main(newest, "search for a saved state"))
    if found is None:
        return None
    name, index = found
    if world.leads_node and not world.is_main:
        states.load_named(name, folder)
    world.meet("download of the saved state")
    return _SavedState(ResumeIndex.parse(index), folder / name)


def _ask_teacher(context: Context, prepared: Prepared, stats: RunStats) -> TeacherOutputs | None:
    """The teacher's outputs for the training rows; None where only the labels count. The teacher is freed."""
    order, teacher = context.order, prepared.teacher
    outputs = None
    if teacher is not None and order.asks_teacher:
        outputs = teacher_outputs(context, prepared.task, prepared.data, teacher, stats)
    free_teacher(context, teacher, unless_needed=True)
    return outputs
