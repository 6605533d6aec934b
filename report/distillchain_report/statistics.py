"""Intervals and tests that any task type can use. How a metric is resampled is the business of its section.

Rows are treated as independent draws. The randomness of training (other seeds) is not covered.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
QUANTILE = 1.959963984540054  # of the standard normal distribution at (1 + CONFIDENCE) / 2
BOOTSTRAP_DRAWS = 2000  # the ends of a 95 % interval then vary by about 2 % of its width
PERMUTATIONS = 10_000  # the standard error of a p-value of 0.05 is then 0.002
SEED = 20240229  # any fixed value: the same store gives the same report

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def share_interval(hits: int, rows: int) -> Interval:
    """Wilson's score interval of a share: accuracy, or recall and precision of a class."""
    # Not scipy's binomtest, which gives the same: the trainer needs this in every stage, and no scipy.
    share, z2 = hits / rows, QUANTILE**2
    center = (2 * rows * share + z2) / (2 * (rows + z2))
    delta = QUANTILE / (2 * (rows + z2)) * math.sqrt(4 * rows * share * (1 - share) + z2)
    return (center - delta if hits else 0.0), (center + delta if hits < rows else 1.0)


# The tests need scipy.special only: scipy.stats, which has the same functions, takes half a second more to import.


def heads_probability(heads: NDArray[np.int64], tosses: NDArray[np.int64]) -> Floats:
    """How probable it is that a fair coin shows so many heads."""
    from scipy.special import betaln

    # The binomial coefficient by logarithms: it exceeds the largest float from 1,030 tosses on.
    found: Floats = np.exp(-np.log1p(tosses) - betaln(tosses - heads + 1, heads + 1) - tosses * math.log(2))
    return found


def sign_test(heads: int, tosses: int) -> float:
    """Two-sided exact p-value of so many heads of a fair coin; 1 without a toss."""
    from scipy.special import betainc

    fewer = min(heads, tosses - heads)
    if 2 * fewer == tosses:
        return 1.0
    # Both tails are alike. The incomplete beta function is that of the binomial distribution, and more exact than bdtr.
    return 2 * float(betainc(tosses - fewer, fewer + 1, 0.5))


def percentile_interval(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of bootstrap values; values that are not numbers do not count."""
    values = values[~np.isnan(values)]
    tail = (1 - CONFIDENCE) / 2
    # No value at all: the class never occurs, so its interval is not shown.
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (0.0, 0.0)
    return float(low), float(high)


ALIKE_DRAWS = "Where a bootstrap gives only 0, or only 1, the interval is Wilson’s of as many rows."
"""Says to a reader of the report what `share_percentiles` does."""


def share_percentiles(values: NDArray[np.float64], *, rows: int) -> Interval:
    """`percentile_interval` of a metric from 0 to 1 that is no mean over rows, such as an F1.

    Where no row is wrong, or none is right, all draws are alike, as if the value were certain. There, the interval is
    that of a share of so many rows.

    Args:
        rows: those that count for the metric.
    """
    found = percentile_interval(values)
    if rows and found in ((0.0, 0.0), (1.0, 1.0)):
        return share_interval(rows if found[0] else 0, rows)
    return found
