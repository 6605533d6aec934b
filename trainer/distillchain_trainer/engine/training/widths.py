"""The widths to which batches are padded where every new width costs: a capture or a compilation."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

FINEST = 8  # GPUs multiply matrices fastest where sizes are multiples of 8


def widths_up_to(longest: int) -> list[int]:
    """Widths from FINEST to `longest`, each 1.2 to 1.5 times the one before: few, with little padding."""
    widths, width = [], FINEST
    while width < longest:
        widths.append(width)
        width += max(FINEST, width // 4 // FINEST * FINEST)
    # Not rounded up: a model may have no position beyond the longest text.
    return [*widths, longest]


def width_for(longest: int, widths: Sequence[int]) -> int:
    """The smallest of the sorted `widths` that holds a row of `longest` tokens."""
    return widths[bisect.bisect_left(widths, longest)]
