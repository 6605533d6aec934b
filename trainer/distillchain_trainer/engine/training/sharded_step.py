"""A step of a model that is split over the ranks: every pass needs all of them, so all make equally many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distillchain_trainer.engine.device.transfer import row_numbers
from distillchain_trainer.engine.training.step import EagerStep
from distillchain_trainer.engine.training.training_state import random_state, set_random_state
from distillchain_trainer.errors import MicroBatchTooLarge, OutOfMemory, is_gpu_memory_short


class ShardedStep(EagerStep):
    """Unlike EagerStep, it does not try again when memory is short.

    The other ranks are then in the middle of a pass, which needs this one. So all have to start again.
    """

    def run(self, batch: Sequence[int], *, stop: Callable[[], bool]) -> Tensor | None:
        """As EagerStep.run. Raises: MicroBatchTooLarge; OutOfMemory when not even one row fits."""
        world = self.work.world
        before = random_state()
        mine = world.share(batch)
        total = torch.zeros((), device=self.work.device)
        weight = self.work.weight(batch)
        largest_share = -(-len(batch) // world.size)
        for start in range(0, largest_share, self.micro_rows):
            (stopped,) = world.any(start > 0 and stop())
            if stopped:
                self.work.optimizer.zero_grad(set_to_none=True)
                set_random_state(before)
                return None
            rows = mine[start : start + self.micro_rows]
            try:
                # A rank without rows takes part with a row that does not count.
                loss = self._loss(rows or batch[:1]) * (1 if rows else 0) / weight
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            except RuntimeError as error:
                if not is_gpu_memory_short(error):
                    raise
                raise _too_large(min(self.micro_rows, largest_share)) from error
            total += loss.detach()
        # The gradients are added up already: FSDP does so in the backward pass.
        self.work.update()
        self.work.optimizer.zero_grad(set_to_none=True)
        return world.add_up(total)

    def _loss(self, rows: Sequence[int]) -> Tensor:
        longest, full = self.work.width(rows)
        width = self.pad(longest)
        picked = row_numbers(rows, self.work.rows_device)
        return self.work.losses(picked, width=width, full=full and width == longest).sum()


def _too_large(rows: int) -> OutOfMemory:
    """The error for micro-batches of so many rows."""
    if rows == 1:
        return OutOfMemory(
            "the GPU has too little memory to train on one row; lower spec.task.maxLength, split the student over more "
            "GPUs (parallelism) or use larger ones"
        )
    return MicroBatchTooLarge(f"the GPU has too little memory to train on {rows} rows at a time", rows=-(-rows // 2))
