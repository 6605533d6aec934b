"""Everything that needs a model to compute: the teacher measured, its outputs, and the training of the student."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillchain_api.failures import StageError
from distillchain_api.gates import missed_teacher_gate, teacher_remedy, teacher_sentence
from distillchain_api.layout import trace_key
from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.spec import Training
from distillchain_api.wire.manifest import ModelFacts, SplitMetrics
from distillchain_store.errors import DiskFull
from distillchain_trainer.data.split import TaskData
from distillchain_trainer.engine.history import History
from distillchain_trainer.engine.loop import Hooks, Settings, TrainingProgress, train
from distillchain_trainer.engine.precision import (
    apply_tf32,
    best_device,
    choose_attention_kernels,
    compute_head_in_float32,
)
from distillchain_trainer.engine.saved_state import ResumeIndex, ResumeStates
from distillchain_trainer.engine.sharding import sharded_copy
from distillchain_trainer.engine.step import RowLosses
from distillchain_trainer.engine.teacher_outputs import TeacherOutputs, TeacherPass, outputs_digest
from distillchain_trainer.engine.training_rows import TrainingRows
from distillchain_trainer.engine.training_state import changed_processes, load_weights, save_weights
from distillchain_trainer.errors import GateNotMet
from distillchain_trainer.models.checkpoints import forget
from distillchain_trainer.models.forward_check import MIXES_PADDING
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.objectives import load_objective
from distillchain_trainer.objectives.label_term import LabelTerm, label_term
from distillchain_trainer.objectives.objective import combined_loss
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.further_teachers import mean_of_teachers, measure_further_teachers
from distillchain_trainer.stage.hidden_term import check_hidden_term, hidden_spec, hidden_term
from distillchain_trainer.stage.measure import MeasuredTeacher, Measurer, Origin, numbers_check
from distillchain_trainer.stage.prepare import LoadedTeacher, Prepared
from distillchain_trainer.stage.recalled import Recalled, Weightless, check_same_rows, refuse_missing
from distillchain_trainer.stage.run_stats import RunStats
from distillchain_trainer.tasks.interface import Measurement, TaskAdapter

log = logging.getLogger(__name__)


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
    apply_numbers(context.order.training, prepared.teacher.loaded if prepared.teacher else None, prepared.student)
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
    found = _find_state(context, states)
    history = History.read(found[1] if found else None)
    _begin_tracking(context, prepared, found)
    if found:
        stats.take_over(found[0])
        # From here on, a stop reports this step: the next attempt resumes there too.
        context.signals.saved_step = found[0].step
        for sentence in found[0].warnings:  # of phases that this attempt may not repeat
            context.warnings.add(sentence)
    # Trained but not committed: the gate was missed, or the attempt was stopped before its commit.
    if found and found[0].finished:
        _free_teacher(context, prepared.teacher)
        further, _ = measure_further_teachers(context, prepared, measurer, is_asked=False)
        load_weights(prepared.student.model, found[1])
        log.info("training was finished before; its student is measured again", extra={"step": found[0].step})
    else:
        # Before the training and not beside it: the teacher can then leave the GPU to the student.
        outputs = _ask_teacher(context, prepared, stats)
        # One teacher at a time on the device, so the others are loaded only now.
        further, others = measure_further_teachers(context, prepared, measurer, is_asked=outputs is not None)
        if outputs is not None and others:
            outputs = mean_of_teachers(context, [outputs, *others])
        resume_from = (found[1], found[0].step) if found else None
        changed = changed_processes(found[1], context.world) if found else ""
        if changed:
            context.warnings.add(changed)
        _Training(context, prepared, measurer, stats, history, states).run(outputs, resume_from)
    return Computed(prepared.student, teacher, stats, history, states, further)


def _begin_tracking(context: Context, prepared: Prepared, found: tuple[ResumeIndex, Path] | None) -> None:
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
        resumed_from=found[1] if found else None,
        step=found[0].step if found else 0,
        train_s=found[0].train_s if found else 0.0,
    )


def apply_numbers(training: Training, *models: Loaded | None) -> None:
    """Sets what the work order says of precision, for teacher and student alike."""
    apply_tf32(training)
    choose_attention_kernels()
    for loaded in models:
        if loaded is not None and not isinstance(loaded.model, Weightless):
            compute_head_in_float32(loaded.model, training.precision)


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
        prepared.task.settle_start(student, measured, seed=context.order.training.seed)


def _find_state(context: Context, states: ResumeStates) -> tuple[ResumeIndex, Path] | None:
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
    return ResumeIndex.parse(index), folder / name


def _ask_teacher(context: Context, prepared: Prepared, stats: RunStats) -> TeacherOutputs | None:
    """The teacher's outputs for the training rows; None where only the labels count. The teacher is freed."""
    order, teacher = context.order, prepared.teacher
    outputs = None
    if teacher is not None and order.distillation is not None and order.distillation.alpha > 0:
        outputs = teacher_outputs(context, prepared.task, prepared.data, teacher, stats)
    _free_teacher(context, teacher, unless_needed=True)
    return outputs


def teacher_outputs(
    context: Context, task: TaskAdapter, data: TaskData, teacher: LoadedTeacher, stats: RunStats
) -> TeacherOutputs:
    """The teacher's outputs for the training rows. A teacher that its pass has asked must have answered for all."""
    order = context.order
    rows, loaded = data.taught, teacher.loaded
    # Deferred, because the pass itself asks for stops: it stores what is computed before it raises.
    with context.signals.deferred(), context.patiently():
        outputs = TeacherPass(
            store=context.store,
            digest=outputs_digest(teacher.checkpoint.digest, order.task, order.training),
            model=loaded.model,
            outputs_of=task.outputs_of,
            encoded=task.encode(rows, loaded, check=context.signals.raise_if_requested),
            # By text and not by position: rows that are moved, added or left out find what was computed.
            keys=rows.keys,
            training=order.training,
            columns=loaded.columns,
            check=numbers_check(rows, teacher.checkpoint),
            folder=context.scratch("logits"),
            save_interval_s=order.save_interval_s,
            stop=lambda: context.signals.requested,
            on_batch=context.batch_reporter("TeacherLogits"),
            world=context.world,
            on_missing=None if teacher.recalled is None else partial(refuse_missing, context, teacher.recalled),
        ).run()
    context.signals.raise_if_requested()
    stats.model_s += outputs.elapsed_s
    # After a resume, the logits are in the store because this very stage computed them. That is no reuse.
    stats.logits_reused = outputs.reused and (stats.logits_reused or not stats.resumed)
    return outputs


def _free_teacher(context: Context, teacher: LoadedTeacher | None, *, unless_needed: bool = False) -> None:
    """The teacher is no longer needed; its GPU memory and disk are the student's.

    Args:
        unless_needed: keep a teacher that runs beside the student.
    """
    if teacher is not None and not (unless_needed and hidden_spec(context) is not None):
        # Not `del`: `prepared` still refers to the model.
        teacher.loaded.model.to("cpu")
        if context.world.leads_node:
            forget(context.folder / "teacher")


def row_losses_of(task: TaskAdapter, distillation: Distillation | None, labels: LabelTerm | None = None) -> RowLosses:
    """The loss of each row: labels and teacher, weighed by `alpha`; without distillation the labels alone.

    Args:
        labels: label smoothing and class weights; None: neither, and the task computes its own loss on the labels.
    """
    # These fields are accepted only for tasks whose loss is a cross-entropy of classes (resource/label_term.py).
    label_loss = task.label_loss if labels is None or labels.is_plain else labels.losses
    if distillation is None or distillation.alpha == 0:

        def label_losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
            return _per_row(label_loss(task.logits_of(answer, compared), compared["targets"]), compared)

        return label_losses
    objective, alpha = load_objective(distillation.objective), distillation.alpha

    def losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
        logits = task.logits_of(answer, compared)
        # With alpha 1 the labels have no weight, so their loss is not computed.
        label = label_loss(logits, compared["targets"]) if alpha < 1 else None
        student, taught = task.teacher_pair(logits, compared["teacher"])
        teacher = objective.losses(
            student,
            taught,
            temperature=distillation.temperature,
            parameters=distillation.all_parameters,
            true_class=_true_class(compared) if objective.needs_true_class else None,
        )
        if "inside" not in compared and teacher.ndim > 1:
            # A row with several outputs of their own, such as labels: their mean, as in the loss on the labels.
            teacher = teacher.flatten(1).mean(1)
        combined = combined_loss(label, teacher, alpha=alpha)
        if label is not None and "labelled" in compared:
            # A row without a label has no other signal, so it learns from the teacher with its full weight.
            combined = torch.where(compared["labelled"], combined, teacher)
        return _per_row(combined, compared)

    return losses


def _true_class(compared: dict[str, Tensor]) -> Tensor:
    """Class indices [rows]; -1 for a row without a label."""
    targets = compared["targets"]
    return torch.where(compared["labelled"], targets, -1) if "labelled" in compared else targets


def _per_row(losses: Tensor, compared: dict[str, Tensor]) -> Tensor:
    """The losses [rows] of a task with one output per row; for a task with items the sum of those of each row."""
    if "inside" not in compared:
        return losses
    # Not a product: what a model answers for padding may be no number.
    return losses.where(compared["inside"], 0.0).sum(-1)


@dataclass(frozen=True)
class _Training:
    """Trains the student in place; saves its state on the way, when stopped, and at the end (the weights alone)."""

    context: Context
    prepared: Prepared
    measurer: Measurer
    stats: RunStats
    history: History
    states: ResumeStates

    def run(self, teacher: TeacherOutputs | None, resume_from: tuple[Path, int] | None) -> None:
        context, order, student = self.context, self.context.order, self.prepared.student
        data = self.prepared.data
        targets = self.prepared.task.targets(data.train)
        # A control that learns from labels alone cannot use unlabelled text. It repeats labelled rows instead, so that
        # it trains for as many steps.
        learned = data.taught if order.teacher is not None else data.train
        rows = TrainingRows.of(
            self.prepared.task.encode(learned, student, check=context.signals.raise_if_requested), targets, teacher
        )
        labels = label_term(order.training, order.task.class_names, targets, device=best_device())
        # Kept by the task for the measurements at the ends of epochs, which ranks cannot leave one by one.
        self.prepared.task.encode(data.validation, student, check=context.signals.raise_if_requested)
        # Rank 0 may wait for the store for half an hour before it comes here, and a collective has a time limit.
        context.world.meet("teacher logits stored")
        # Ranks must start from the same weights. They have loaded or drawn the same, if their machines are alike.
        hidden = hidden_term(context, self.prepared)
        context.world.copy_from_main([*student.model.parameters(), *(hidden.parameters() if hidden else ())])
        # Until the finished student is stored: a signal that raised before would lose the training.
        with context.signals.deferred():
            progress = train(
                student.model,
                rows,
                row_losses_of(self.prepared.task, order.distillation, labels),
                Settings(
                    order.training,
                    micro_batch_size=order.micro_batch_size,
                    folder=context.scratch("training"),
                    save_interval_s=order.save_interval_s,
                    pads_freely=student.model.config.model_type not in MIXES_PADDING,
                    world=context.world,
                    sharded=context.is_sharded,
                    best_by=order.task.deciding_metric if order.training.selection == "Best" else None,
                    rows_per_epoch=len(data.taught),
                ),
                resume_from=resume_from,
                train_s_before=self.stats.train_s,
                history=self.history,
                hooks=Hooks(
                    stop=lambda: context.signals.requested,
                    on_step=self._report,
                    save=self._save_on_the_way,
                    validate=self._validate,
                    wants_trace=context.signals.take_trace_request,
                    keep_trace=self._keep_trace,
                ),
                extra=hidden,
            )
            if hidden is not None:
                hidden.close()
                _free_teacher(context, self.prepared.teacher)
            self.stats.trained(progress)
            final = context.scratch("final")
            with context.patiently():
                self._on_main(lambda: self._save_finished(final, progress))
            context.signals.saved_step = progress.step
        # A stop that came meanwhile ends the stage here; the next attempt measures and commits the stored student.
        context.signals.raise_if_requested()

    def _report(self, progress: TrainingProgress) -> None:
        self.context.reporter.report(
            "Train",
            progress.step,
            progress.of,
            epoch=progress.epoch,
            loss=progress.loss,
            examples_per_second=progress.examples_per_second,
            eta_s=progress.eta_s,
        )
        self.context.tracking.follow(self.history.points, step=progress.step, train_s=progress.train_s)

    def _keep_trace(self, trace: Path, step: int) -> None:
        context = self.context
        key = trace_key(context.order.digest, context.attempt, rank=context.world.rank, step=step)
        context.store.upload(key, trace)
        log.info("trace stored", extra={"trace": f"{context.store.uri}/{key}"})

    def _validate(self, model: Any) -> SplitMetrics:
        student = replace(self.prepared.student, model=model)
        # Interruptible, because signals are deferred here and a measurement may take longer than the grace period.
        measured, _ = self.measurer.split(student, self.prepared.data.validation, "Evaluate", interruptible=True)
        return measured.metrics

    def _on_main(self, save: Callable[[], bool]) -> bool:
        """What `save` returns on rank 0. The others wait, for half an hour where the store is away."""
        return self.context.world.from_main(lambda: str(save()), "saving of the state") == str(True)

    def _save_finished(self, folder: Path, progress: TrainingProgress) -> bool:
        save_weights(self.prepared.student.model, folder)
        self._save(folder, progress, is_complete=True)
        return True

    def _save(self, folder: Path, progress: TrainingProgress, *, is_complete: bool = False) -> None:
        # With the state, so that a training that is resumed continues its curve.
        self.history.write_state(folder)
        self.context.tracking.saved(folder, step=progress.step)
        index = self.stats.index(
            progress,
            elapsed_s=self.context.elapsed_s,
            warnings=self.context.warnings.sentences,
            is_complete=is_complete,
        )
        self.states.save(folder, index)

    def _save_on_the_way(self, folder: Path, progress: TrainingProgress, stops: bool) -> bool:
        self.stats.trained(progress)
        saved = self._on_main(lambda: self._try_to_save(folder, progress, stops))
        if saved:
            # After the state is stored: a stop must not report a step that cannot be resumed.
            self.context.signals.saved_step = progress.step
        return saved

    def _try_to_save(self, folder: Path, progress: TrainingProgress, stops: bool) -> bool:
        """Saves; while training goes on, a store that fails is only a warning.

        The weights are in memory, and the store is needed again at the next save and at the end. Ending the stage here,
        for an expired token or a clock that is off, would lose them.
        """
        # The last chance to save: wait for the store for as long as the grace period allows. `stops` too, because the
        # signal may have come to another rank alone.
        if stops or self.context.signals.requested:
            with self.context.patiently(stops=stops):
                self._save(folder, progress)
            return True
        try:
            self._save(folder, progress)
        except DiskFull:
            raise
        except StageError as error:
            log.warning("the state is not saved; training goes on", extra={"step": progress.step, "why": str(error)})
            return False
        return True
