"""The training loop: one student, one process. Knows tensors and steps, no task, teacher or store.

On the same batches it gives the same weights as transformers' Trainer. Unlike the Trainer, it weights a micro-batch by
its rows, saves states without pickles, and leaves losses on the GPU until their values are needed.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from distillchain_api.resource.spec import Training
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_trainer.engine.data_order import epoch_batches, steps_per_epoch
from distillchain_trainer.engine.history import History
from distillchain_trainer.engine.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from distillchain_trainer.engine.precision import autocast, device_of
from distillchain_trainer.engine.training_state import (
    RandomState,
    load_state,
    random_state,
    save_state,
    set_random_state,
    set_seed,
)
from distillchain_trainer.errors import OutOfMemory, StopRequested, TrainingDiverged

log = logging.getLogger(__name__)

DIVERGED_REMEDY = "lower training.learningRate, add warmupRatio, or use precision float32"
LOOP = "loop.json"
SAVE_AGAIN_S = 60.0  # after a state could not be saved
RECENT_STEPS = 50  # of which progress shows the mean loss
GPU_CHECK_STEPS = 50  # reading a loss from a GPU waits for the GPU, so losses are read in groups of so many steps


class TrainingRows(Protocol):
    """The training rows, ready to be batched."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    def batch(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs of the model for some rows, and what the loss compares its answer with; all [rows, ...]."""


RowLosses = Callable[[Any, dict[str, Tensor]], Tensor]
"""The loss of each row [rows], from what the model returned and the second part of TrainingRows.batch."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far training is, for progress lines and saved states."""

    step: int
    of: int
    epoch: float
    loss: float
    """Mean of the last RECENT_STEPS steps."""
    train_s: float
    examples_per_second: float
    eta_s: float
    micro_batch_size: int


@dataclass(frozen=True)
class Hooks:
    """What the loop calls on its way.

    Attributes:
        stop: whether to save and stop; asked after each step and between the micro-batches of a step.
        on_step: after each step whose loss is known.
        save: stores the state in a folder; False: it could not, and training goes on.
        validate: measures the student at the end of an epoch; may raise StopRequested to skip it.
    """

    stop: Callable[[], bool]
    on_step: Callable[[TrainingProgress], None]
    save: Callable[[Path, TrainingProgress], bool]
    validate: Callable[[], SplitMetrics]


def train(
    model: Any,
    rows: TrainingRows,
    row_losses: RowLosses,
    *,
    training: Training,
    micro_batch_size: int | None,
    folder: Path,
    resume_from: tuple[Path, int] | None,
    train_s_before: float,
    save_interval_s: float,
    history: History,
    hooks: Hooks,
) -> TrainingProgress:
    """Trains `model` in place to the end.

    Args:
        micro_batch_size: rows of one forward pass; None: all of a step. Without dropout the weights are the same up to
            rounding; with dropout the random masks differ.
        folder: for states in the making.
        resume_from: a saved state and its step.
        train_s_before: seconds that earlier attempts spent training.
        history: gets the losses, and the metrics of `hooks.validate` at the end of each epoch but the last.
    Raises: StopRequested once the state is saved; TrainingDiverged; OutOfMemory.
    """
    # Before dropout draws for the first time. A resumed run takes over the saved random numbers afterwards.
    set_seed(training.seed)
    run = _Run(model, rows, row_losses, training, micro_batch_size, folder, save_interval_s, history, hooks)
    if resume_from is not None:
        run.resume(*resume_from)
    return run.to_the_end(train_s_before)


class _Run:
    """One call of `train`: the optimizer, the clock and the losses that are still on the device."""

    def __init__(
        self,
        model: Any,
        rows: TrainingRows,
        row_losses: RowLosses,
        training: Training,
        micro_batch_size: int | None,
        folder: Path,
        save_interval_s: float,
        history: History,
        hooks: Hooks,
    ) -> None:
        self.model, self.rows, self.row_losses, self.training = model, rows, row_losses, training
        self.folder, self.save_interval_s, self.history, self.hooks = folder, save_interval_s, history, hooks
        self.device = device_of(model)
        self.optimizer = build_optimizer(model, training)
        self.epoch_steps = steps_per_epoch(len(rows.lengths), training.batch_size)
        self.steps = self.epoch_steps * training.epochs
        self.micro_rows = min(micro_batch_size or training.batch_size, training.batch_size)
        self.step = self.first_step = 0
        self.unread: list[Tensor] = []  # losses of the last steps, on the device
        self.recent: list[float] = []
        self.trained_rows = 0

    def resume(self, state: Path, step: int) -> None:
        """Continues after `step`."""
        load_state(state, self.model, self.optimizer)
        self.step = self.first_step = step
        kept = json.loads((state / LOOP).read_text(encoding="utf-8"))
        # The mean that progress shows then goes on, instead of starting again from a single loss.
        self.recent = kept["recent"]
        self.micro_rows = min(self.micro_rows, kept["micro_rows"])  # smaller after GPU memory was short

    def to_the_end(self, train_s_before: float) -> TrainingProgress:
        self.train_s_before = train_s_before
        self.started = self.saved = time.monotonic()
        self.away_s = 0.0  # spent on saving and measuring, which is no training
        self.model.train()
        while self.step < self.steps:
            epoch, position = divmod(self.step, self.epoch_steps)
            if position == 0 and epoch > 0:
                # Here and not after the epoch's last step: a stop at that step saves first, and the resumed run
                # measures the epoch. The last epoch is left out, because the finished student is measured anyway.
                self._measure_epoch(epoch)
            batches = epoch_batches(self.rows.lengths, self.training.batch_size, seed=self.training.seed, epoch=epoch)
            # The order depends on seed and epoch alone, so a resumed epoch goes on with the batches that are left.
            for batch in batches[position:]:
                self._train_step(batch)
                self._after_step()
        return self.progress()

    def _train_step(self, batch: list[int]) -> None:
        set_learning_rate(self.optimizer, learning_rate_at(self.step, self.steps, self.training))
        # A step that is given up is repeated, in smaller micro-batches or after a resume, with the same random numbers.
        may_give_up = self.device.type != "cpu" or len(batch) > self.micro_rows
        # Not needed otherwise: on a CPU, a step of one micro-batch always completes.
        before = random_state() if may_give_up else None
        while (loss := self._backward(batch, before)) is None:
            self._give_up_step(before)
            # min(), because halving a size above that of the batch may change nothing. Rounded up, it ends at 1 row.
            self.micro_rows = -(-min(self.micro_rows, len(batch)) // 2)
            log.warning("the GPU has too little memory for a micro-batch", extra={"micro_batch_size": self.micro_rows})
            torch.cuda.empty_cache()
        # After the last micro-batch: the norm is that of the gradient of the whole step.
        if self.training.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.trained_rows += len(batch)
        self.unread.append(loss)

    def _give_up_step(self, before: RandomState | None) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if before is not None:
            set_random_state(before)

    def _backward(self, batch: list[int], before: RandomState | None) -> Tensor | None:
        """Adds the gradient of the mean loss over `batch` and returns that loss; None: a micro-batch did not fit.

        The loss of a micro-batch is the sum over its rows, divided by the rows of the whole step. So every row weighs
        the same, however they are cut into micro-batches.
        """
        total = torch.zeros((), device=self.device)
        for start in range(0, len(batch), self.micro_rows):
            micro_batch = batch[start : start + self.micro_rows]
            if start and self.hooks.stop():  # a step of many micro-batches may outlast the grace period of a pod
                self._give_up_step(before)
                self._read_losses()
                self._save()
                raise StopRequested(self.step)
            try:
                loss = self._loss_sum(micro_batch) / len(batch)
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            except torch.OutOfMemoryError as error:
                if len(micro_batch) == 1:
                    raise OutOfMemory(
                        "the GPU has too little memory to train on one row; lower spec.task.maxLength or use a "
                        "larger GPU"
                    ) from error
                # Not retried here: inside `except`, the error keeps the tensors that did not fit alive.
                return None
            total += loss.detach()
        return total

    def _loss_sum(self, micro_batch: list[int]) -> Tensor:
        inputs, compared = self.rows.batch(micro_batch)
        # The forward pass alone, as torch advises: backward operations use the types of the forward ones.
        with autocast(self.device, self.training.precision):
            answer = self.model(**_on(self.device, inputs))
        losses = self.row_losses(answer, _on(self.device, compared))
        # An objective that returns a mean would be broadcast without an error and give a wrong gradient.
        if losses.shape != (len(micro_batch),):
            raise ValueError(
                f"row losses of shape {tuple(losses.shape)}, expected one value for each of {len(micro_batch)} rows"
            )
        return losses.sum()

    def _after_step(self) -> None:
        # After the last step there is nothing to save here: the caller stores the finished student, without moments.
        last = self.step >= self.steps
        stop = self.hooks.stop() and not last
        due = time.monotonic() - self.saved > self.save_interval_s and not last
        epoch_ends = self.step % self.epoch_steps == 0
        if self.device.type == "cpu" or stop or due or epoch_ends or len(self.unread) >= GPU_CHECK_STEPS:
            self._read_losses()  # before anything is saved or measured: neither may see a diverged student
        if stop or due:
            self._save()
        if stop:
            raise StopRequested(self.step)

    def _read_losses(self) -> None:
        """Brings the losses of the last steps from the device. Raises: TrainingDiverged naming the first bad step."""
        # One transfer for all losses: each read from a GPU waits until the GPU has caught up.
        values = torch.stack(self.unread).tolist() if self.unread else []
        first, self.unread = self.step - len(values) + 1, []
        for step, loss in enumerate(values, start=first):
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss became {loss} at step {step}; {DIVERGED_REMEDY}")
            self.recent = [*self.recent[1 - RECENT_STEPS :], loss]
            rate = learning_rate_at(step, self.steps, self.training)
            self.history.trained(step, self.steps, step / self.epoch_steps, loss, rate)
        self.hooks.on_step(self.progress())

    def _save(self) -> None:
        began = time.monotonic()
        state = self.folder / f"step-{self.step}"
        state.mkdir(parents=True, exist_ok=True)
        save_state(state, self.model, self.optimizer)
        kept = {"recent": self.recent, "micro_rows": self.micro_rows}
        (state / LOOP).write_text(json.dumps(kept), encoding="utf-8")
        saved = self.hooks.save(state, self.progress())
        # One state at a time on the pod's disk: with both moments it is three times as large as the weights.
        for path in state.iterdir():
            path.unlink()
        now = time.monotonic()
        self.saved = now if saved else now - self.save_interval_s + min(self.save_interval_s, SAVE_AGAIN_S)
        self.away_s += now - began

    def _measure_epoch(self, epoch: int) -> None:
        began = time.monotonic()
        # A stop during the measurement skips it: the next step saves and stops, and a training resumed after that step
        # does not come back here.
        with suppress(StopRequested):
            self.history.measured(self.step, float(epoch), self.hooks.validate())
        self.model.train()
        self.away_s += time.monotonic() - began

    def progress(self) -> TrainingProgress:
        """How far training is now."""
        # Rates and remaining time are of this attempt alone: an earlier one may have run on other hardware.
        here_s = time.monotonic() - self.started - self.away_s
        steps = self.step - self.first_step
        return TrainingProgress(
            step=self.step,
            of=self.steps,
            epoch=self.step / self.epoch_steps,
            loss=sum(self.recent) / max(len(self.recent), 1),
            train_s=self.train_s_before + here_s,
            examples_per_second=self.trained_rows / max(here_s, 1e-9),
            eta_s=(self.steps - self.step) * here_s / max(steps, 1),
            micro_batch_size=self.micro_rows,
        )


def _on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
