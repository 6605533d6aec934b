"""Rows in groups of bounded size, so that equal numbers are in one group: sorting all rows at once takes memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

PARTITION_ROWS = 2**18  # about so many rows are in memory at a time
BLOCK_ROWS = 2**18  # looked at together

Numbers = Callable[[int, int], NDArray[np.uint64]]
"""The numbers of the rows from a first to a last one, such as hashes of their texts."""


def partitions(numbers: Numbers, rows: int) -> Iterator[NDArray[np.int64]]:
    """All rows once: those with the smallest numbers first, within a group in the order of the rows.

    The numbers must be spread evenly, as hashes are. They are computed again for each group.
    """
    count = max(1, -(-rows // PARTITION_ROWS))
    for part in range(count):
        found = [np.zeros(0, dtype=np.int64)]
        for start in range(0, rows, BLOCK_ROWS):
            # The upper half of the bits is enough to tell the groups apart, and the product fits 64 bits.
            high = numbers(start, min(start + BLOCK_ROWS, rows)) >> np.uint64(32)
            found.append(start + np.flatnonzero((high * np.uint64(count)) >> np.uint64(32) == part))
        yield np.concatenate(found)
