"""The processes that train one stage together, and what they have to agree on.

Every rank runs the same code on its share of the rows. With one process, everything here costs nothing and does
nothing. Collectives must be called by all ranks in the same order, or they wait for each other until the timeout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_ELEMENTS = 16 * 2**20  # of one collective over gradients; needs 64 MiB beside them


@dataclass(frozen=True)
class World:
    """The processes of a stage, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: how many processes there are.
        local_rank: number of this process on its node: the GPU that it uses.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_alone(self) -> bool:
        """Whether one process trains the stage."""
        return self.size == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that talks to the store and to the user."""
        return self.rank == 0

    def share(self, rows: Sequence[int]) -> list[int]:
        """This rank's part of some rows. Sizes differ by one at most; a part is empty if there are too few rows."""
        start, end = (len(rows) * (self.rank + side) // self.size for side in (0, 1))
        return list(rows[start:end])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has raised it. On CPU, so a GPU is not waited for."""
        if self.is_alone:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums the gradients of all ranks in place.

        Not DistributedDataParallel, which starts its collectives during the backward pass: a rank that runs out of
        memory there would leave the others waiting. Here all ranks first agree that every one of them has finished.
        """
        if self.is_alone:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # a rank without rows in this step, or a parameter that the loss does not reach
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET_ELEMENTS:
                _add_up_together(bucket)
                bucket = []
        if bucket:
            _add_up_together(bucket)


ALONE = World()


def _add_up_together(tensors: list[Tensor]) -> None:
    """One collective for many tensors: a model has hundreds of them, most of them small."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))
