"""The order of the training rows: batches of about equal length, in random order. Decided by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

GROUPED_BATCHES = 50  # rows are sorted by length within so many batches, as transformers' group_by_length does


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps of one epoch; the rows that are left over make one smaller batch."""
    return -(-rows // batch_size)


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch: every row once; all batches full but one, which may come at any place.

    Rows are shuffled, sorted by length within groups of batches so that little is padded, and cut into batches. Then
    the batches are shuffled: without that a group runs from its longest texts to its shortest, and a short training
    ends biased towards short texts (SST-2, 10,000 rows, 3 epochs, random femto: 62 to 72 % against 77 to 79 %).
    """
    # The shift leaves room for 2**20 epochs, so that no other pair of seed and epoch has the same sum.
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    rows = torch.randperm(len(lengths), generator=generator).tolist()
    # At least four groups, as in transformers, or a small data set would be one sorted list.
    group = max(1, min(len(rows) // (batch_size * 4), GROUPED_BATCHES)) * batch_size
    for start in range(0, len(rows), group):
        rows[start : start + group] = sorted(rows[start : start + group], key=lambda row: -lengths[row])
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]
