"""Cuts arrays into blocks of bounded size, so that memory does not grow with the number of rows or classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

FLOAT_BYTES = 4


def outputs_within(nbytes: int, inner: Sequence[int]) -> int:
    """How many float32 outputs of the shape `inner` take so many bytes; at least one."""
    return max(1, nbytes // max(1, FLOAT_BYTES * int(np.prod(inner, dtype=np.int64))))


def blocks_of(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Start and end of groups of neighbours whose sizes add up to `most` at most, or of one that is larger."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop
        start = stop
