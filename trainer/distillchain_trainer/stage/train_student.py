"""The training of a student: its rows and losses handed to the loop, and its states saved on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distillchain_api.failures import StageError
from distillchain_api.layout import trace_key
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_store.errors import DiskFull
from distillchain_trainer.engine.device.precision import best_device
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.loop import Hooks, Settings, train
from distillchain_trainer.engine.training.progress import TrainingProgress
from distillchain_trainer.engine.training.saved_state import ResumeStates
from distillchain_trainer.engine.training.training_rows import TrainingRows
from distillchain_trainer.engine.training.training_state import save_weights
from distillchain_trainer.models.forward_check import MIXES_PADDING
from distillchain_trainer.objectives.label_term import label_term
from distillchain_trainer.stage.ask_teacher import free_teacher
from distillchain_trainer.stage.context import Context
from distillchain_trainer.stage.hidden_term import hidden_term
from distillchain_trainer.stage.measure import Measurer
from distillchain_trainer.stage.prepare import Prepared
from distillchain_trainer.stage.row_losses import row_losses_of
from distillchain_trainer.stage.run_stats import RunStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentTraining:
    """Trains the student in place; saves its state on the way, when stopped, and at the end (the weights alone)."""

    context: Context
    prepared: Prepared
    measurer: Measurer
    stats: RunStats
    history: History
    states: ResumeStates

    def run(self, teacher: TeacherOutputs | None, resume_from: tuple[Path, int] | None) -> None:
        """Trains to the end.

        Args:
            teacher: what it answered for the training rows; None: only labels count.
            resume_from: a saved state and its step.
        Raises: StopRequested once the state is saved; TrainingDiverged, OutOfMemory; errors of the store.
        """
        context, order, student = self.context, self.context.order, self.prepared.student
        task = self.prepared.task
        targets = task.targets(self.prepared.data.train)
        rows = self._encode(targets, teacher)
        labels = label_term(order.training, order.task.class_names, targets, device=best_device())
        # Rank 0 may wait for the store for half an hour before it comes here, and a collective has a time limit.
        context.world.meet("teacher logits stored")
        # Ranks must start from the same weights. They have loaded or drawn the same, if their machines are alike. A
        # student that is split is sent by rank 0 in any case.
        hidden = hidden_term(context, self.prepared)
        if not context.is_sharded:
            context.world.copy_from_main([*student.model.parameters(), *(hidden.parameters() if hidden else ())])
        # Until the finished student is stored: a signal that raised before would lose the training.
        with context.signals.deferred():
            progress = train(
                student.model,
                rows,
                row_losses_of(task, order.distillation, labels),
                self._settings(),
                resume_from=resume_from,
                train_s_before=self.stats.train_s,
                history=self.history,
                hooks=self._hooks(),
                extra=hidden,
            )
            if hidden is not None:
                hidden.close()
                free_teacher(context, self.prepared.teacher)
            self.stats.trained(progress)
            final = context.scratch("final")
            with context.patiently():
                self._on_main(lambda: self._save_finished(final, progress))
            context.signals.saved_step = progress.step
        # A stop that came meanwhile ends the stage here; the next attempt measures and commits the stored student.
        context.signals.raise_if_requested()

    def _encode(self, targets: Tensor, teacher: TeacherOutputs | None) -> TrainingRows:
        """Encodes the rows of training and validation. Returns: those of training."""
        data, task, student = self.prepared.data, self.prepared.task, self.prepared.student
        check = self.context.signals.raise_if_requested
        # A control that learns from labels alone cannot use unlabelled text. It repeats labelled rows instead, so that
        # it trains for as many steps.
        learned = data.taught if self.context.order.teacher is not None else data.train
        rows = TrainingRows.of(task.encode(learned, student, check=check), targets, teacher)
        # Kept by the task for the measurements at the ends of epochs, which ranks cannot leave one by one.
        task.encode(data.validation, student, check=check)
        return rows

    def _settings(self) -> Settings:
        context, order = self.context, self.context.order
        return Settings(
            order.training,
            micro_batch_size=order.micro_batch_size,
            folder=context.scratch("training"),
            save_interval_s=order.save_interval_s,
            pads_freely=self.prepared.student.model.config.model_type not in MIXES_PADDING,
            world=context.world,
            sharded=context.is_sharded,
            best_by=order.task.deciding_metric if order.training.selection == "Best" else None,
            rows_per_epoch=len(self.prepared.data.taught),
            fitting_rows=context.fitting_rows,
        )

    def _hooks(self) -> Hooks:
        signals = self.context.signals
        return Hooks(
            stop=lambda: signals.requested,
            on_step=self._report,
            save=self._save_on_the_way,
            validate=self._validate,
            wants_trace=signals.take_trace_request,
            keep_trace=self._keep_trace,
        )

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
        """Saves; while training continues, a store that fails is only a warning.

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
            log.warning("the state is not saved; training continues", extra={"step": progress.step, "why": str(error)})
            return False
        return True
