"""Bootstrap and paired permutation test on counts of rows that are alike ("cells").

The cost does not grow with the number of rows: drawing rows with replacement is a multinomial draw of cells, and
swapping two models' answers in some rows of a cell is a binomial draw. What a row is, and the metric, is the business
of a section.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distillchain_report.statistics import BOOTSTRAP_DRAWS, PERMUTATIONS, SEED, Floats, heads_probability

AT_ONCE = 100  # draws held in memory; with 1,000 classes and 5,000 distinct rows about 4 MB an array
EXACT_OUTCOMES = 1 << 14  # up to here, listing all outcomes of the permutation test costs no more than drawing some
TIE = 1e-9  # two differences that are equal but for rounding

Ints = NDArray[np.int64]


def count_alike(*columns: Ints) -> tuple[Ints, Ints]:
    """The distinct rows [column, cell], and how often each occurs [cell]."""
    cells, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return cells.T, counts.astype(np.int64)


def bootstrap_draws(counts: Ints) -> Iterator[Ints]:
    """Counts of resampled rows [draw, cell], in blocks."""
    dice = np.random.default_rng(SEED)
    rows = int(counts.sum())
    for _ in range(BOOTSTRAP_DRAWS // AT_ONCE):
        yield dice.multinomial(rows, counts / rows, size=AT_ONCE)


class Swaps(Protocol):
    """Two models whose answers can be swapped in some rows.

    Attributes:
        counts: number of rows of each cell on which the two differ [cell].
    """

    counts: Ints

    def differences(self, swapped: Ints) -> Floats:
        """The difference of the metric [outcome] for the number of swapped rows of each cell [outcome, cell]."""


def permutation_test(swaps: Swaps, *, permutations: int = PERMUTATIONS) -> float:
    """Two-sided p-value of a paired permutation test.

    Under the null hypothesis the two models are interchangeable: in each row their answers could as well be swapped.
    The p-value is the share of all ways to swap that give a difference of the metric at least as large as the measured
    one. It is exact where few rows differ; elsewhere it is (b + 1) / (m + 1) with b of m random swaps (Phipson and
    Smyth 2010), which is never too small.
    """
    # Less by TIE, or rounding could exclude outcomes that are as large as the measured one.
    measured = abs(float(swaps.differences(np.zeros((1, len(swaps.counts)), dtype=np.int64))[0])) - TIE
    # Python's integers: this product overflows 64 bits with a few dozen cells.
    outcomes = math.prod(count + 1 for count in swaps.counts.tolist())
    if outcomes <= EXACT_OUTCOMES:
        listed = np.stack(np.unravel_index(np.arange(outcomes), swaps.counts + 1), axis=1)
        # Swapping k of a cell's rows can be done in many ways, and all ways are equally likely: hence the binomial
        # weights.
        weights = np.prod(heads_probability(listed, swaps.counts), axis=1)
        # Rounded weights may add up to a little more than 1.
        return min(1.0, float(weights[np.abs(swaps.differences(listed)) >= measured].sum()))
    # Draws in blocks, because the classes of all draws at once would not fit into memory.
    dice = np.random.default_rng(SEED)
    as_large = 0
    for start in range(0, permutations, AT_ONCE):
        drawn = dice.binomial(swaps.counts, 0.5, size=(min(AT_ONCE, permutations - start), len(swaps.counts)))
        as_large += int((np.abs(swaps.differences(drawn)) >= measured).sum())
    return (as_large + 1) / (permutations + 1)
