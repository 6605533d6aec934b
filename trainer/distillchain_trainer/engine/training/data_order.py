"""The order of the training rows: batches of about equal length, in random order. Decided by seed and epoch alone."""

from __future__ import annotations

import itertools
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
        rows_per_epoch: if it is more than there are rows, they are repeated, as in so many epochs and a part of one;
            None: their number.
    """
    generator = _generator(seed, epoch)
    count = max(rows_per_epoch or 0, len(lengths))
    if count > len(lengths):
        rows, starts = _repeated(len(lengths), count, seed=seed, epoch=epoch)
    else:
        rows, starts = _shuffled(count, generator), [0]
    lengths = np.asarray(lengths)
    # At least four groups, as in transformers, or a small data set would be one sorted list.
    group = max(1, min(len(rows) // (batch_size * 4), GROUPED_BATCHES)) * batch_size
    # No group holds a row twice: sorting would put both into one batch, which then has fewer different rows.
    bounds = sorted({*range(0, len(rows), group), *starts, len(rows)})
    for start, stop in itertools.pairwise(bounds):
        part = rows[start:stop]
        part[:] = part[np.argsort(-lengths[part], kind="stable")]
    order = torch.randperm(steps_per_epoch(len(rows), batch_size), generator=generator)
    return Batches(rows, batch_size, order.numpy())


def _generator(seed: int, number: int) -> torch.Generator:
    # The shift leaves room for 2**20 numbers, so that no other pair has the same sum.
    return torch.Generator().manual_seed((seed << 20) + number)


def _shuffled(count: int, generator: torch.Generator) -> NDArray[np.int32]:
    # The same order as with int64, in half of the memory.
    rows: NDArray[np.int32] = torch.randperm(count, generator=generator, dtype=torch.int32).numpy()
    return rows


def _repeated(rows: int, count: int, *, seed: int, epoch: int) -> tuple[NDArray[np.int32], list[int]]:
    """So many row numbers of an endless sequence of shuffled passes over `rows`, and where passes start in them.

    An epoch continues where the one before has stopped, so that over all epochs each row comes equally often.
    """
    parts: list[NDArray[np.int32]] = []
    starts, found = [], 0
    number, skipped = divmod(epoch * count, rows)
    while found < count:
        part = _shuffled(rows, _generator(seed, number))[skipped:][: count - found]
        parts.append(part)
        starts.append(found)
        found, number, skipped = found + len(part), number + 1, 0
    return np.concatenate(parts), starts
