"""Intervals that any task type can use. How a metric is resampled is the business of its section.

Rows are treated as independent draws. The randomness of training (other seeds) is not covered.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Formulas of our own instead of scipy.stats, whose import takes longer than building the whole report.
CONFIDENCE = 0.95
QUANTILE = 1.959963984540054  # of the standard normal distribution, for CONFIDENCE
BOOTSTRAP_DRAWS = 2000  # the ends of a 95 % interval then vary by about 2 % of its width
PERMUTATIONS = 10_000  # the standard error of a p-value of 0.05 is then 0.002
SEED = 20240229  # any fixed value: the same store gives the same report

Interval = tuple[float, float]


def share_interval(hits: int, rows: int) -> Interval:
    """Wilson's score interval of a share: accuracy, or recall and precision of a class."""
    share, square = hits / rows, QUANTILE**2 / rows
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    # Exact at the ends, where rounding could give a bound just outside of 0 to 1.
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == rows else middle + half


def fair_coin_p_value(heads: int, tosses: int) -> float:
    """Two-sided p-value of the exact binomial test of a fair coin."""
    fewer = min(heads, tosses - heads)
    # Both tails are equal. With as many heads as tails they overlap, and the sum exceeds 1.
    return min(1.0, 2 * float(fair_coin_chances(np.arange(fewer + 1), np.array(tosses)).sum()))


def fair_coin_chances(heads: NDArray[np.int64], tosses: NDArray[np.int64]) -> NDArray[np.float64]:
    """The probability of each number of heads in so many tosses of a fair coin; shapes as numpy broadcasts them."""
    # Logarithms, because factorials of some hundred rows exceed floating-point numbers.
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(tosses.max()) + 1)))])
    ways = log_factorials[tosses] - log_factorials[heads] - log_factorials[tosses - heads]
    found: NDArray[np.float64] = np.exp(ways - tosses * math.log(2))
    return found


def percentile_interval(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of bootstrap values; values that are not numbers do not count."""
    values = values[~np.isnan(values)]
    tail = (1 - CONFIDENCE) / 2
    # No value at all: the class never occurs, so its interval is not shown.
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (0.0, 0.0)
    return float(low), float(high)
