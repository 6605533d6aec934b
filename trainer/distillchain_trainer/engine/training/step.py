"""One optimizer step, executed operation by operation: the reference that every other mode must agree with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillchain_api.resource.training import Training
from distillchain_trainer.engine.device.calling import call_model
from distillchain_trainer.engine.device.precision import autocast
from distillchain_trainer.engine.device.transfer import all_moved, row_numbers
from distillchain_trainer.engine.ranks.world import ALONE, World
from distillchain_trainer.engine.training.training_state import RandomState, random_state, set_random_state
from distillchain_trainer.errors import OutOfMemory, is_gpu_memory_short

log = logging.getLogger(__name__)

# Below so many rows a forward pass leaves a GPU idle, so activations are computed twice before it gets any smaller.
CHECKPOINTING_ROWS = 8


class Rows(Protocol):
    """The training rows; see TrainingRows."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""

    @property
    def weights(self) -> NDArray[np.int32] | None:
        """How much each row weighs in the mean loss of a step; None: all rows the same."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""

    def batch(self, rows: Tensor, *, width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs of the model for some rows [rows, width], and what the loss compares its answer with."""


RowLosses = Callable[[Any, dict[str, Tensor]], Tensor]
"""The loss of each row [rows], from what the model returned and the second part of Rows.batch.

A row that has a weight has the sum of as many losses.
"""


class ExtraLoss(Protocol):
    """A loss that needs more than the model's answer, such as hidden states, and may have parameters of its own."""

    @property
    def module(self) -> nn.Module:
        """Holds the parameters that are trained with the model."""

    def observe(self, inputs: dict[str, Tensor]) -> None:
        """Called in each pass, right after the model has read `inputs` [rows, width]."""

    def losses(self, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of each row [rows], after `observe`."""


@dataclass
class Work:
    """What every step of a training computes with.

    Attributes:
        rows: on `rows_device`; on the host if they do not fit the GPU.
        sharded: each rank holds a part of the model, so all must make the same passes.
        extra: a loss that is added to `row_losses`.
    """

    model: Any
    rows: Rows
    rows_device: torch.device
    row_losses: RowLosses
    training: Training
    optimizer: torch.optim.AdamW
    device: torch.device
    world: World = ALONE
    sharded: bool = False
    extra: ExtraLoss | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained: of the model, then of the extra loss."""
        return [*self.model.parameters(), *(self.extra.module.parameters() if self.extra else ())]

    def losses(self, rows: Tensor, *, width: int, full: bool) -> Tensor:
        """The loss of each of some rows, [rows].

        Args:
            full: no row is shorter than `width`. A GPU then computes attention without a mask, by a faster kernel.
        """
        inputs, compared = self.rows.batch(rows, width=width)
        if full and self.device.type == "cuda":
            del inputs["attention_mask"]
        # The forward pass alone, as torch advises: backward operations use the types of the forward ones.
        inputs, compared = all_moved(inputs, self.device), all_moved(compared, self.device)
        with autocast(self.device, self.training.precision, keeps_casts=not self.sharded):
            answer = call_model(self.model, inputs)
            if self.extra is not None:
                self.extra.observe(inputs)
        losses = self.row_losses(answer, compared)
        if self.extra is not None:
            # Of a task with items, a row has the sum of as many losses as it has items, and is weighed by them.
            items = compared["inside"].sum(-1) if "inside" in compared else 1
            losses = losses + self.extra.losses(inputs) * items
        # An objective that returns a mean would be broadcast without an error and give a wrong gradient.
        if losses.shape != (len(rows),):
            raise ValueError(
                f"row losses of shape {tuple(losses.shape)}, expected one value for each of {len(rows)} rows"
            )
        return losses

    def weight(self, rows: Sequence[int]) -> int:
        """What the sum of the losses of all rows of a step is divided by.

        Every rank knows all rows of a step, so all find the same.
        """
        weights = self.rows.weights
        # At least 1: in a step without any item, the sum of losses is 0 too.
        return len(rows) if weights is None else max(1, int(weights[np.asarray(rows)].sum()))

    def update(self) -> None:
        """Changes the weights by their gradients, which are those of the whole step."""
        if self.training.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        self.optimizer.step()

    def width(self, rows: Sequence[int]) -> tuple[int, bool]:
        """Tokens of the longest of some rows, and whether all have as many."""
        sizes = self.rows.lengths[np.asarray(rows)]
        return int(sizes.max()), bool(sizes.min() == sizes.max())


class EagerStep:
    """A step in micro-batches that fit the memory of the device.

    Attributes:
        micro_rows: rows of one forward pass; halved when memory is short.
        recomputes: activations are computed a second time in the backward pass, because memory is short.
        pad: the width for a batch whose longest row has so many tokens.
    """

    def __init__(self, work: Work, micro_rows: int, *, pad: Callable[[int], int] = lambda longest: longest) -> None:
        self.work = work
        self.micro_rows = micro_rows
        self.recomputes = False
        self.pad = pad

    def run(self, batch: Sequence[int], *, stop: Callable[[], bool]) -> Tensor | None:
        """The mean loss over `batch`, after one optimizer step; None: given up for a stop, and nothing has changed.

        Raises: OutOfMemory when not even one row fits.
        """
        # A step that is given up is repeated, in smaller micro-batches or after a resume, with the same random numbers.
        # On a CPU, a step of one micro-batch always completes.
        may_give_up = self.work.device.type != "cpu" or len(batch) > self.micro_rows or not self.work.world.is_alone
        before = random_state() if may_give_up else None
        while True:
            loss, short, stopped = self._backward(batch, stop)
            short, stopped = self.work.world.any(short, stopped)
            if not short and not stopped:
                break
            self._give_up(before)
            if stopped:
                return None
            self._need_less_memory(len(batch))
        self.work.world.add_up_gradients(self.work.parameters)
        # After the last micro-batch: the norm is that of the gradient of the whole step.
        self.work.update()
        self.work.optimizer.zero_grad(set_to_none=True)
        return self.work.world.add_up(loss)

    def recompute(self) -> None:
        """From now on activations are computed twice, which takes less memory and gives the same gradients."""
        self.work.model.activation_checkpointing_enable({"use_reentrant": False})
        self.recomputes = True

    def _backward(self, batch: Sequence[int], stop: Callable[[], bool]) -> tuple[Tensor, bool, bool]:
        """Adds the gradient of this rank's share of the mean loss.

        The loss of a micro-batch is the sum over its rows, divided by the weight of the rows of the whole step. So
        every row or item weighs the same, however the rows are cut into micro-batches and over ranks.

        Returns: the loss, whether memory was short, and whether it stopped early.
        """
        total = torch.zeros((), device=self.work.device)
        weight = self.work.weight(batch)
        mine = self.work.world.share(batch)
        for start in range(0, len(mine), self.micro_rows):
            if start and stop():  # a step of many micro-batches may outlast the grace period of a pod
                return total, False, True
            rows = mine[start : start + self.micro_rows]
            longest, full = self.work.width(rows)
            width = self.pad(longest)
            try:
                picked = row_numbers(rows, self.work.rows_device)
                loss = self.work.losses(picked, width=width, full=full and width == longest).sum() / weight
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            # Not retried here: inside `except`, the error keeps the tensors that did not fit alive.
            except RuntimeError as error:
                if not is_gpu_memory_short(error):
                    raise
                return total, True, False
            total += loss.detach()
        return total, False, False

    def _give_up(self, before: RandomState | None) -> None:
        self.work.optimizer.zero_grad(set_to_none=True)
        if before is not None:
            set_random_state(before)

    def _need_less_memory(self, rows: int) -> None:
        """Raises: OutOfMemory when nothing is left to try. All ranks decide the same."""
        share = -(-rows // self.work.world.size)
        fits = min(self.micro_rows, share)
        can_recompute = not self.recomputes and getattr(self.work.model, "supports_gradient_checkpointing", False)
        if can_recompute and fits <= CHECKPOINTING_ROWS:
            self.recompute()
        elif fits > 1:
            # The smaller of both, because halving a size above that of the batch may change nothing.
            self.micro_rows = -(-fits // 2)
        else:
            raise OutOfMemory(
                "the GPU has too little memory to train on one row; lower spec.task.maxLength or use a larger GPU"
            )
        log.warning(
            "the GPU has too little memory for a micro-batch",
            extra={"micro_batch_size": self.micro_rows, "recomputes_activations": self.recomputes},
        )
        torch.cuda.empty_cache()
