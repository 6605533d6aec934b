"""Scores of multi-label predictions, and how sure they are. Truth and predictions are bool [rows, labels]. Pure.

All four metrics follow scikit-learn: f1_score with average="micro" and "macro", accuracy_score and hamming_loss of
label indicators. They depend on the rows only through counts per label and per row, so that resampled and swapped rows
need no second look at single cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distillchain_report.evidence.pseudo_values import pseudo_values
from distillchain_report.statistics import (
    BOOTSTRAP_DRAWS,
    PERMUTATIONS,
    SEED,
    Interval,
    percentile_interval,
    share_interval,
    share_percentiles,
)

Labels = NDArray[np.bool_]
Floats = NDArray[np.float64]

# A bootstrap of 100,000 rows and 1,000 labels would take hours; fewer draws then give a coarser interval in seconds.
MAX_PRODUCTS = 1_000_000_000
FEWEST_DRAWS = 100
AT_ONCE = 100
TIE = 1e-12  # rounding must not exclude outcomes that are as large as the measured one


def metric_value(metric: str, truth: Labels, predicted: Labels) -> float:
    """The metric of one model."""
    return float(_metric(metric, np.ones((1, len(truth))), _columns(metric, truth, predicted))[0])


def metric_interval(metric: str, truth: Labels, predicted: Labels) -> Interval:
    """Wilson's interval for subset accuracy; for the others the percentiles of a bootstrap over rows."""
    if metric == "subsetAccuracy":
        return share_interval(int((truth == predicted).all(axis=1).sum()), len(truth))
    columns = _columns(metric, truth, predicted)
    values = np.concatenate([_metric(metric, draws, columns) for draws in _draws(columns)])
    # A row without labels that gets none has no part in an F1.
    counted = len(truth) if metric == "hammingLoss" else int((truth | predicted).any(axis=1).sum())
    return share_percentiles(values, rows=counted)


def f1_intervals(truth: Labels, predicted: Labels) -> list[Interval]:
    """The interval of each label's F1; draws without a row of the label do not count."""
    columns = _columns("macroF1", truth, predicted)
    values = []
    for draws in _draws(columns):
        f1, occurs = _f1(draws, columns)
        values.append(np.where(occurs, f1, np.nan))
    rows = truth.sum(axis=0).tolist()
    return [share_percentiles(column, rows=count) for column, count in zip(np.concatenate(values).T, rows, strict=True)]


def retention_interval(metric: str, truth: Labels, teacher: Labels, student: Labels) -> Interval:
    """The interval of the student's metric divided by the teacher's: a bootstrap that draws rows with both answers."""
    theirs, ours = _columns(metric, truth, teacher), _columns(metric, truth, student)
    ratios = []
    for draws in _draws(ours):
        below, above = _metric(metric, draws, theirs), _metric(metric, draws, ours)
        # A draw in which the teacher gets nothing right has no ratio.
        ratios.append(above[below > 0] / below[below > 0])
    return percentile_interval(np.concatenate(ratios))


def contributions(metric: str, truth: Labels, predicted: Labels) -> Floats:
    """What each row contributes to the metric [rows]."""
    columns = _columns(metric, truth, predicted)
    count, rows, labels = columns.shape
    sums = np.moveaxis(columns, 1, 0).reshape(rows, count * labels)
    # A mean over rows is its own pseudo-value; one row is left out of an F1.
    if metric in ("subsetAccuracy", "hammingLoss"):
        return sums[:, 0]
    return pseudo_values(sums, lambda of: _of_sums(metric, np.moveaxis(of.reshape(-1, count, labels), 1, 0), rows))


def permutation_p_value(
    metric: str, truth: Labels, teacher: Labels, student: Labels, *, permutations: int = PERMUTATIONS
) -> float:
    """Two-sided p-value of a paired permutation test, which swaps the two models' answers in random rows.

    It is (b + 1) / (m + 1) with b of m swaps that give at least the measured difference (Phipson and Smyth 2010).
    """
    differs = (teacher != student).any(axis=1)
    if not differs.any():
        return 1.0
    theirs, ours = _columns(metric, truth, teacher), _columns(metric, truth, student)
    ones = np.ones((1, len(truth)))
    measured = abs(float((_metric(metric, ones, ours) - _metric(metric, ones, theirs))[0])) - TIE
    # Only what a swap can change is swapped; everything else is added once.
    changes = (ours - theirs)[:, differs]
    sums = (theirs.sum(axis=1), ours.sum(axis=1))
    dice = np.random.default_rng(SEED)
    count = _affordable(changes, permutations)
    as_large = 0
    for _ in range(0, count, AT_ONCE):
        swapped = dice.integers(0, 2, size=(AT_ONCE, changes.shape[1])).astype(np.float64)
        moved = np.einsum("ds,csl->cdl", swapped, changes, optimize=True)
        other, own = sums[0][:, None] + moved, sums[1][:, None] - moved
        difference = _of_sums(metric, own, len(truth)) - _of_sums(metric, other, len(truth))
        as_large += int((np.abs(difference) >= measured).sum())
    return (as_large + 1) / (-(-count // AT_ONCE) * AT_ONCE + 1)


def constant_answer(metric: str, truth: Labels) -> float:
    """The best value of the metric for one set of labels that is answered for every row."""
    if metric == "subsetAccuracy":
        return float(np.unique(truth, axis=0, return_counts=True)[1].max() / len(truth))
    frequencies = truth.mean(axis=0)
    if metric == "hammingLoss":
        return float(np.minimum(frequencies, 1 - frequencies).mean())
    if metric == "macroF1":
        # Answering a label never costs the others anything, so the best answer is all labels.
        occurring = frequencies[frequencies > 0]
        return float((2 * occurring / (1 + occurring)).mean()) if len(occurring) else 0.0
    # Micro F1 counts a label the more, the more frequent it is: the best set consists of the most frequent ones.
    hits = np.cumsum(np.sort(frequencies)[::-1])
    return float((2 * hits / (np.arange(1, len(hits) + 1) + frequencies.sum())).max())


def _columns(metric: str, truth: Labels, predicted: Labels) -> Floats:
    """What the metric sums over the rows, [count, row, label]; one column where no label needs a sum of its own."""
    if metric == "subsetAccuracy":
        right: Floats = (truth == predicted).all(axis=1)[None, :, None].astype(np.float64)
        return right
    if metric == "hammingLoss":
        wrong: Floats = (truth != predicted).mean(axis=1)[None, :, None]
        return wrong
    found = np.stack([truth & predicted, truth, predicted]).astype(np.float64)
    return found.sum(axis=2, keepdims=True) if metric == "microF1" else found


def _metric(metric: str, draws: Floats, columns: Floats) -> Floats:
    """The metric of each draw of rows [draw, row]."""
    sums = np.einsum("dr,crl->cdl", draws, columns, optimize=True)
    return _of_sums(metric, sums, int(draws[0].sum()))


def _of_sums(metric: str, sums: Floats, rows: int) -> Floats:
    """The metric from sums [count, draw, label]."""
    if metric in ("subsetAccuracy", "hammingLoss"):
        share: Floats = sums[0, :, 0] / rows
        return share
    f1, occurs = _f1_of(sums)
    if metric == "microF1":
        micro: Floats = f1[:, 0]
        return micro
    mean: Floats = (f1 * occurs).sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    return mean


def _f1(draws: Floats, columns: Floats) -> tuple[Floats, Labels]:
    return _f1_of(np.einsum("dr,crl->cdl", draws, columns, optimize=True))


def _f1_of(sums: Floats) -> tuple[Floats, Labels]:
    """F1 [draw, label], 0 for a label that neither occurs nor is predicted, and whether the label occurs."""
    hits, rows, guesses = sums
    # F1 is 2 TP / (2 TP + FP + FN), which is 2 TP / (rows of the label + its predictions).
    f1: Floats = 2 * hits / np.maximum(rows + guesses, 1)
    return f1, rows > 0


def _draws(columns: Floats) -> Iterator[Floats]:
    """How often each row is drawn, [draw, row], in blocks."""
    dice = np.random.default_rng(SEED)
    rows = columns.shape[1]
    for _ in range(0, _affordable(columns, BOOTSTRAP_DRAWS), AT_ONCE):
        yield dice.multinomial(rows, np.full(rows, 1 / rows), size=AT_ONCE).astype(np.float64)


def _affordable(columns: Floats, wanted: int) -> int:
    """How many draws are made of a table of this size."""
    return max(FEWEST_DRAWS, min(wanted, MAX_PRODUCTS // columns.size))
