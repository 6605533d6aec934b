"""The order of the training rows: batches of about equal length, in random order. Decided by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

GROUPED_BATCHES = 50  # rows are sorted by length within so many batches, as transformers' group_by_length does


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch; the rows that are left over make one smaller batch."""
    return -(-rows // batch_size)


@dataclass(frozen=True, eq=False)
class Batches(Sequence[list[int]]):
    """The batches of one epoch, or some of them. Four bytes for each row, and eight for each batch.

    Attributes:
        rows: numbers of rows, batch after batch.
        order: the batches in the order in which they are trained.
    """

    rows: NDArray[np.int32]
    batch_size: int
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> Batches: ...

    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return Batches(self.rows, self.batch_size, self.order[index])
        start = int(self.order[index]) * self.batch_size
        batch: list[int] = self.rows[start : start + self.batch_size].tolist()
        return batch

    def __iter__(self) -> Iterator[list[int]]:
        return (self[place] for place in range(len(self)))


def epoch_batches(
    lengths: Sequence[int] | NDArray[np.int32],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rows_per_epoch: int | None = None,
) -> Batches:
    """The batches of one epoch: every row once; all batches full but one, which may come at any place.

    Rows are shuffled, sorted by length within groups of batches so that little is padded, and cut into batches. Then
    the batches are shuffled: without that a group runs from its longest texts to its shortest, and a short training
    ends biased towards short texts (SST-2, 10,000 rows, 3 epochs, random femto: 62 to 72 % against 77 to 79 %).

    Args:
        rows_per_epoch: if it is more than there are rows, they are repeated; None: their number.
    """
    # The shift leaves room for 2**20 epochs, so that no other pair of seed and epoch has the same sum.
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    # The same order as with int64, in half of the memory.
    count = max(rows_per_epoch or 0, len(lengths))
    rows = torch.randperm(count, generator=generator, dtype=torch.int32).numpy()
    if count > len(lengths):
        # An epoch goes on where the one before has stopped, so that over all epochs each row comes equally often.
        rows = ((rows.astype(np.int64) + epoch * count) % len(lengths)).astype(np.int32)
    lengths = np.asarray(lengths)
    # At least four groups, as in transformers, or a small data set would be one sorted list.
    group = max(1, min(len(rows) // (batch_size * 4), GROUPED_BATCHES)) * batch_size
    for start in range(0, len(rows), group):
        part = rows[start : start + group]
        part[:] = part[np.argsort(-lengths[part], kind="stable")]
    order = torch.randperm(steps_per_epoch(len(rows), batch_size), generator=generator)
    return Batches(rows, batch_size, order.numpy())
