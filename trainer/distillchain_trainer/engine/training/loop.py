"""The training loop of one student. Knows tensors and steps, no task, teacher or store.

On the same batches it gives the same weights as transformers' Trainer. Unlike the Trainer, it weights a micro-batch by
its rows, saves states without pickles, and leaves losses on the GPU until their values are needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distillchain_api.metrics import Metric
from distillchain_api.resource.training import Training
from distillchain_api.wire.manifest import SelectedEpoch, SplitMetrics
from distillchain_trainer.engine.device.compiled import uncompile_layers, without_compiled_layers
from distillchain_trainer.engine.device.memory import free_bytes
from distillchain_trainer.engine.device.modes import Mode
from distillchain_trainer.engine.device.precision import best_device, device_of
from distillchain_trainer.engine.device.sharding import gather_weights, sharded_copy
from distillchain_trainer.engine.ranks.world import ALONE, World
from distillchain_trainer.engine.training.data_order import epoch_batches, steps_per_epoch
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.optimizer import build_optimizer, learning_rate_at
from distillchain_trainer.engine.training.progress import Meter, TrainingProgress
from distillchain_trainer.engine.training.saved_loop import SavedLoop
from distillchain_trainer.engine.training.selection import BestSoFar, EpochSelection
from distillchain_trainer.engine.training.step import ExtraLoss, RowLosses, Rows, Work
from distillchain_trainer.engine.training.stepper import Stepper
from distillchain_trainer.engine.training.tracing import StepTracer
from distillchain_trainer.engine.training.training_state import load_state, load_weights, save_state, set_seed
from distillchain_trainer.errors import LostPeers, StopRequested

SAVE_AGAIN_S = 60.0  # after a state could not be saved
ROWS_SHARE = 0.2  # of the free memory of a GPU, for the training rows
GPU_CHECK_STEPS = 50  # reading a loss from a GPU waits for the GPU, so losses are read in groups of so many steps


@dataclass(frozen=True)
class Hooks:
    """What the loop calls on its way.

    Attributes:
        stop: whether to save and stop; asked after each step and between the micro-batches of a step.
        on_step: after each step whose loss is known.
        save: stores the state that rank 0 has in a folder; False: it could not, and training continues. Every rank
            calls it, with whether the training stops afterwards, as all ranks have agreed.
        validate: measures the student at the end of an epoch, given as the model that is trained, which may be split;
            may raise StopRequested instead, on all ranks then.
        wants_trace: whether a profiler trace was asked for since the last call.
        keep_trace: stores a trace that ends with a step.
    """

    stop: Callable[[], bool]
    on_step: Callable[[TrainingProgress], None]
    save: Callable[[Path, TrainingProgress, bool], bool]
    validate: Callable[[Any], SplitMetrics]
    wants_trace: Callable[[], bool] = lambda: False
    keep_trace: Callable[[Path, int], None] = lambda _path, _step: None


@dataclass(frozen=True)
class Settings:
    """What a training needs beside the model and its rows.

    Attributes:
        micro_batch_size: rows of one forward pass on one device; None: all of a step. Without dropout the weights are
            the same up to rounding; with dropout the random masks differ.
        folder: for states in the making.
        pads_freely: the model's answer for a row does not depend on how far its batch is padded.
        world: the processes that train together.
        sharded: split weights, gradients and moments over them.
        best_by: the metric on validation by which the best epoch is chosen; None: the weights of the last epoch stay.
        rows_per_epoch: rows are repeated up to this number; None: every row once.
        fitting_rows: rows of one forward pass, after memory was short for more; None: it was not.
    """

    training: Training
    micro_batch_size: int | None
    folder: Path
    save_interval_s: float
    pads_freely: bool = True
    world: World = ALONE
    sharded: bool = False
    best_by: Metric | None = None
    rows_per_epoch: int | None = None
    fitting_rows: int | None = None

    @property
    def asked_rows(self) -> int:
        """Rows of one forward pass, if memory suffices."""
        return min(self.micro_batch_size or self.training.batch_size, self.training.batch_size)

    def micro_rows(self, saved: int | None) -> int:
        """Rows of one forward pass, as far as it is known what memory suffices for.

        Args:
            saved: from a saved state; None: not known.
        """
        return min(rows for rows in (self.asked_rows, self.fitting_rows, saved) if rows is not None)


def train(
    model: Any,
    rows: Rows,
    row_losses: RowLosses,
    settings: Settings,
    *,
    resume_from: tuple[Path, int] | None,
    train_s_before: float,
    history: History,
    hooks: Hooks,
    extra: ExtraLoss | None = None,
) -> TrainingProgress:
    """Trains `model` in place to the end.

    Args:
        model: on its device. One that is split is on the CPU of rank 0, and stays there.
        extra: a loss that is added to `row_losses`; its parameters are saved and resumed with the model's.
        resume_from: a saved state and its step.
        train_s_before: seconds that earlier attempts spent training.
        history: gets the losses, and the metrics of `hooks.validate` at the end of each epoch; of the last one only
            where the best epoch is chosen.
    Raises: StopRequested with the step of the newest saved state; TrainingDiverged; OutOfMemory.
    """
    # Before dropout draws for the first time. A resumed run takes over the saved random numbers afterwards. Ranks
    # train different rows, so each draws other numbers.
    set_seed(settings.training.seed + settings.world.rank)
    state, first_step = resume_from or (None, 0)
    work = _prepare_work(model, rows, row_losses, settings, state, extra)
    saved = SavedLoop()
    if state is not None:
        load_state(state, work.optimizer, settings.world, extra=extra.module if extra else None)
        saved = SavedLoop.read(state, settings.asked_rows)
    selection = _prepare_selection(settings, saved.best, state)
    meter = Meter(first_step=first_step, recent=saved.recent, train_s_before=train_s_before)
    run = _Run(work, model, settings, history, hooks, saved, selection, meter, step=first_step)
    try:
        return run.to_the_end()
    finally:
        run.tracer.finish(run.step)


def _prepare_work(
    model: Any, rows: Rows, row_losses: RowLosses, settings: Settings, state: Path | None, extra: ExtraLoss | None
) -> Work:
    """The model with the weights of a saved state, split if it is to be, and its rows and optimizer."""
    training, world, sharded = settings.training, settings.world, settings.sharded
    device = best_device() if sharded else device_of(model)
    rows_device = device if fits_beside_training(rows.nbytes, device) else torch.device("cpu")
    if state is not None and (world.is_main or not sharded):
        load_weights(model, state)
    # Rank 0 alone may have read them, for minutes if they are many, and sends them in collectives with a time limit.
    world.meet("loading of the weights")
    trained = sharded_copy(model, world, device=device) if sharded else model
    return Work(
        trained,
        rows.to(rows_device),
        rows_device,
        row_losses,
        training,
        build_optimizer(trained, training, more=extra.module.parameters() if extra else ()),
        device,
        world,
        sharded,
        extra,
    )


def _prepare_selection(settings: Settings, best: BestSoFar, state: Path | None) -> EpochSelection | None:
    if settings.best_by is None:
        return None
    return EpochSelection(
        settings.best_by,
        settings.training.patience,
        folder=settings.folder,
        world=settings.world,
        sharded=settings.sharded,
        best=best,
        state=state,
    )


class _Run:
    """One call of `train`: its steps, and what happens between them."""

    def __init__(
        self,
        work: Work,
        model: Any,
        settings: Settings,
        history: History,
        hooks: Hooks,
        saved: SavedLoop,
        selection: EpochSelection | None,
        meter: Meter,
        *,
        step: int,
    ) -> None:
        self.work, self.settings, self.history, self.hooks = work, settings, history, hooks
        self.model = model  # whole, where `work` has only a part of it
        self.selection, self.meter = selection, meter
        self.selected: SelectedEpoch | None = None
        self.training = settings.training
        self.stepper = Stepper(
            work,
            settings.micro_rows(saved.micro_rows),
            pads_freely=settings.pads_freely,
            decided=saved.mode,
            recomputes=saved.recomputes,
        )
        self.epoch_rows = max(settings.rows_per_epoch or 0, len(work.rows.lengths))
        self.epoch_steps = steps_per_epoch(self.epoch_rows, self.training.batch_size)
        self.steps = self.epoch_steps * self.training.epochs
        self.step = self.saved_step = step
        self.saved_at = time.monotonic()
        self.tracer = StepTracer(hooks.wants_trace, hooks.keep_trace, settings.folder)

    def to_the_end(self) -> TrainingProgress:
        self.work.model.train()
        while self.step < self.steps:
            epoch, position = divmod(self.step, self.epoch_steps)
            if position == 0 and epoch > 0:
                # Here and not after the epoch's last step: a stop at that step saves first, and the resumed run
                # measures the epoch.
                self._measure_epoch(epoch)
                if self.selection is not None and self.selection.is_over:
                    break
            lengths, training = self.work.rows.lengths, self.training
            batches = epoch_batches(
                lengths, training.batch_size, seed=training.seed, epoch=epoch, rows_per_epoch=self.epoch_rows
            )
            # The order depends on seed and epoch alone, so a resumed epoch continues with the batches that are left.
            for batch in batches[position:]:
                self.tracer.before_step()
                self._train_step(batch)
                self.tracer.after_step(self.step)
                self._after_step()
        if self.selection is None:
            # The last epoch is not measured here: the caller measures the finished student anyway.
            self._gather_weights()
        else:
            self._choose_epoch(self.selection)
        uncompile_layers(self.work.model)  # what follows makes other passes, of other shapes and without gradients
        return self.progress()

    def _choose_epoch(self, selection: EpochSelection) -> None:
        """Gives the whole model the weights of the best epoch; of one that is split, that of rank 0. All call it."""
        if not selection.is_over:
            self._measure_epoch(self.training.epochs)
        self._gather_weights()
        selection.restore(self.model)
        # Patience may have ended the training between two points of its curve.
        rate = learning_rate_at(self.step, self.steps, self.training)
        self.history.ended(self.step, self.step / self.epoch_steps, rate)
        # Progress must not end at a part of the steps. The learning rate depends on them, and is not needed any more.
        self.steps = self.step
        self.selected = selection.result(self.step, epochs=self.training.epochs)
        self.hooks.on_step(self.progress())

    def _gather_weights(self) -> None:
        """Gives the whole model of rank 0 the present weights. All ranks call it."""
        if self.work.sharded:
            with self.work.world.collective("gathering of the weights"):
                gather_weights(self.work.model, self.model, self.work.world)

    def _train_step(self, batch: list[int]) -> None:
        rate = learning_rate_at(self.step, self.steps, self.training)
        loss = self.stepper.step(batch, rate, steps_left=self.steps - self.step, stop=self.hooks.stop)
        if loss is None:
            self._read_losses()
            self._save(stops=True)
            raise StopRequested(self.saved_step)
        self.step += 1
        self.meter.trained(loss, rows=len(batch))

    def _after_step(self) -> None:
        # After the last step there is nothing to save here: the caller stores the finished student, without moments.
        # But where the best epoch is chosen, the last one must still be measured, and a stop may come before.
        last = self.step >= self.steps
        # Agreed, because signals and clocks of ranks differ, and all must stop and save at the same step.
        stop, due = self.work.world.any(
            self.hooks.stop() and not (last and self.selection is None),
            time.monotonic() - self.saved_at > self.settings.save_interval_s and not last,
        )
        epoch_ends = self.step % self.epoch_steps == 0
        if self.work.device.type == "cpu" or stop or due or epoch_ends or self.meter.unread >= GPU_CHECK_STEPS:
            self._read_losses()  # before anything is saved or measured: neither may see a diverged student
        if stop or due:
            self._save(stops=stop)
        if stop:
            raise StopRequested(self.saved_step)

    def _read_losses(self) -> None:
        """Brings the losses of the last steps from the device. Raises: TrainingDiverged."""
        for step, loss in self.meter.read(self.step):
            rate = learning_rate_at(step, self.steps, self.training)
            self.history.trained(step, self.steps, step / self.epoch_steps, loss, rate)
        self.hooks.on_step(self.progress())

    def _save(self, *, stops: bool) -> None:
        with self.meter.away():
            state = self.settings.folder / f"step-{self.step}"
            self._write_state(state)
            saved = self.hooks.save(state, self.progress(), stops)
            if saved:
                self.saved_step = self.step
            if self.work.world.is_main:
                # One state at a time on the pod's disk: with both moments it is three times as large as the weights.
                for path in state.iterdir():
                    path.unlink()
        interval_s = self.settings.save_interval_s
        self.saved_at = time.monotonic() - (0 if saved else max(0, interval_s - SAVE_AGAIN_S))

    def _write_state(self, state: Path) -> None:
        """Writes what a resumed training needs into a folder. All ranks call it."""
        self._gather_weights()
        extra = self.work.extra.module if self.work.extra else None
        save_state(state, self.model, self.work.optimizer, self.work.world, extra=extra)
        if not self.work.world.is_main:
            return
        best = self.selection.best if self.selection else BestSoFar()
        SavedLoop.of(self.stepper, self.settings.asked_rows, recent=self.meter.recent, best=best).write(state)
        if self.selection is not None:
            self.selection.write_state(state)

    def _measure_epoch(self, epoch: int) -> None:
        if self.selection is not None and self.selection.best.measured >= epoch:
            return  # before the state was saved from which this training is resumed
        with self.meter.away():
            try:
                with without_compiled_layers(self.work.model):
                    metrics = self.hooks.validate(self.work.model)
                self.history.measured(self.step, float(epoch), metrics)
                if self.selection is not None:
                    self._gather_weights()
                    self.selection.measured(epoch, self.step, metrics, self.model)
            except LostPeers:
                raise
            except StopRequested:
                # Here and not after the next step, so that the resumed training measures this epoch again.
                self._save(stops=True)
                raise StopRequested(self.saved_step) from None
            self.work.model.train()

    def progress(self) -> TrainingProgress:
        """How far training is now."""
        return self.meter.progress(
            self.step,
            self.steps,
            epoch=self.step / self.epoch_steps,
            micro_batch_size=self.stepper.eager.micro_rows,
            mode=str(self.stepper.decided_mode or Mode.EAGER),
            selected=self.selected,
        )


def fits_beside_training(nbytes: int, device: torch.device) -> bool:
    """Whether rows of so many bytes leave enough memory of a GPU to the training; always on a CPU."""
    return device.type != "cuda" or nbytes < ROWS_SHARE * free_bytes(device)
