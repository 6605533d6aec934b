"""What each row contributes to a metric: its jackknife pseudo-value (Tukey 1958; Efron and Stein 1981).

For a mean over rows it is the row's own value. For another smooth function of sums over rows, such as macro F1 or a
correlation, it is `rows * metric(all) - (rows - 1) * metric(all but this row)`, whose mean and variance over rows are
about those of the metric, so that a method for means works with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_report.statistics import Floats

Numbers = NDArray[np.number[Any]]

AT_ONCE = 1 << 22
"""Numbers held at a time, 32 MB: with many classes the sums of all rows would not fit into memory."""

ValueOfSums = Callable[[Floats], Floats]
"""The metric [...] of sums over rows [..., sums]."""


def pseudo_values(sums: Floats, value: ValueOfSums) -> Floats:
    """The pseudo-value of each row.

    Args:
        sums: what each row adds to the sums [rows, sums].
        value: the metric of such sums.
    Returns: [rows].
    """
    rows, width = sums.shape
    total = sums.sum(axis=0)
    whole = float(value(total[None])[0])
    step = max(1, AT_ONCE // width)
    # Without one row after the other. There are often few distinct rows (truth and prediction), but not always.
    left_out = np.concatenate([value(total - sums[start : start + step]) for start in range(0, rows, step)])
    found: Floats = rows * whole - (rows - 1) * left_out
    return found


def of_macro_f1(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> Floats:
    """Of the mean F1 of the classes that occur in the truth.

    A class with a single row does not vanish from the mean where that row is left out: it counts as 0 there, or the
    metric would jump.
    """
    classes, codes = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    true, guessed = codes[: len(truth)], codes[len(truth) :]
    count = len(classes)
    occurs = np.bincount(true, minlength=count) > 0
    # Rows with the same truth and prediction have the same pseudo-value.
    cells, place = np.unique(true * count + guessed, return_inverse=True)
    true, guessed = cells // count, cells % count
    sizes = np.bincount(place)
    rows, guesses = (np.bincount(each, weights=sizes, minlength=count) for each in (true, guessed))
    hits = np.bincount(true, weights=sizes * (true == guessed), minlength=count)
    f1 = _f1(hits, rows, guesses)
    whole = f1[occurs].mean()
    # Leaving out one row changes the F1 of its class and of the predicted class only.
    right = true == guessed
    of_true = _f1(hits[true] - right, rows[true] - 1, guesses[true] - right)
    of_guessed = _f1(hits[guessed], rows[guessed], guesses[guessed] - 1)
    change = (of_true - f1[true]) * occurs[true]
    change += np.where(right, 0.0, (of_guessed - f1[guessed]) * occurs[guessed])
    left_out = whole + change / occurs.sum()
    found: Floats = (len(truth) * whole - (len(truth) - 1) * left_out)[place]
    return found


def _f1(hits: Numbers, rows: Numbers, guesses: Numbers) -> Floats:
    both = rows + guesses
    found: Floats = np.divide(2 * hits, both, out=np.zeros_like(both, dtype=np.float64), where=both > 0)
    return found


def of_ratio(above: Numbers, below: Numbers) -> Floats:
    """Of a ratio of sums, such as a loss per token or an F1 over all items, from what each row adds to both [rows]."""
    return pseudo_values(np.stack([above, below], axis=1).astype(np.float64), _ratio)


def of_perplexity(losses: Numbers, tokens: Numbers) -> Floats:
    """Of exp(loss per token) from each row's sum of losses and number of tokens [rows]."""
    sums = np.stack([losses, tokens], axis=1).astype(np.float64)
    return pseudo_values(sums, _perplexity)


def _perplexity(sums: Floats) -> Floats:
    found: Floats = np.exp(_ratio(sums))
    return found


def _ratio(sums: Floats) -> Floats:
    above, below = sums[..., 0], sums[..., 1]
    found: Floats = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found


def of_pearson(truth: Floats, predicted: Floats) -> Floats:
    """Of Pearson's correlation. Of Spearman's too, from ranks, which are then those among all rows."""
    # Centred first: sums of squares of large numbers would cancel each other out.
    x, y = truth - truth.mean(), predicted - predicted.mean()
    ones = np.ones_like(x)
    return pseudo_values(np.stack([ones, x, y, x * x, y * y, x * y], axis=1), _correlation)


def _correlation(sums: Floats) -> Floats:
    n, x, y, xx, yy, xy = (sums[..., index] for index in range(6))
    spread = (n * xx - x * x) * (n * yy - y * y)
    found: Floats = np.divide(n * xy - x * y, np.sqrt(np.maximum(spread, 0)), out=np.zeros_like(n), where=spread > 0)
    return found
