"""Accuracy and macro F1: values, chance levels, bootstrap intervals and the paired permutation test.

All of it works on counts of rows that are alike (alike_rows.py).

Macro F1 averages over the classes that occur in the truth, as the trainer measures it. In a bootstrap draw these are
the classes that occur in that draw: the same definition is applied to the drawn rows. A fixed set of classes would
count a rare class as 0 in every draw that happens to miss it, and push the interval down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distillchain_report.alike_rows import bootstrap_draws, count_alike, permutation_test
from distillchain_report.evidence.pseudo_values import of_macro_f1
from distillchain_report.statistics import (
    PERMUTATIONS,
    Interval,
    percentile_interval,
    share_interval,
    share_percentiles,
    sign_test,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Classes = NDArray[np.int64]
Floats = NDArray[np.float64]


def chance_level(metric: str, truth: Classes, predicted: Classes) -> float:
    """What guessing reaches: the metric that the trainer compares a model with before it calls it learned.

    Accuracy: always naming the most frequent class. Macro F1: the same predictions in random order. Their expected hits
    of a class are rows * predictions / all rows, and F1 is linear in the hits while the other counts stay the same.
    """
    size = int(max(truth.max(), predicted.max())) + 1
    rows, guesses = np.bincount(truth, minlength=size), np.bincount(predicted, minlength=size)
    if metric == "accuracy":
        return float(rows.max() / rows.sum())
    occurs = rows > 0
    # A constant answer would be too low a bar: coin tosses between two classes reach 0.5, a constant answer only 0.33.
    expected_hits = rows[occurs] * guesses[occurs] / rows.sum()
    return float((2 * expected_hits / (rows[occurs] + guesses[occurs])).mean())


def metric_interval(metric: str, truth: Classes, predicted: Classes) -> Interval:
    """Wilson's interval for accuracy; for macro F1 the percentiles of a bootstrap over rows."""
    # Wilson's interval needs no draws. Where every row is right, a bootstrap's would shrink to a point.
    if metric == "accuracy":
        return share_interval(int((truth == predicted).sum()), len(truth))
    cells, counts = count_alike(truth, predicted)
    values = np.concatenate([_metric(metric, draws, *cells) for draws in bootstrap_draws(counts)])
    return share_percentiles(values, rows=len(truth))


def f1_intervals(truth: Classes, predicted: Classes, classes: int) -> list[Interval]:
    """The interval of each class's F1, from a bootstrap over rows; draws without a row of the class do not count."""
    cells, counts = count_alike(truth, predicted)
    values = []
    for draws in bootstrap_draws(counts):
        f1, occurs = _f1(draws, cells[0], cells[1], classes)
        # A draw without a row of the class says nothing about its F1. As 0 it would push the interval down.
        values.append(np.where(occurs, f1, np.nan))
    rows = np.bincount(truth, minlength=classes).tolist()
    return [share_percentiles(column, rows=count) for column, count in zip(np.concatenate(values).T, rows, strict=True)]


def retention_interval(metric: str, truth: Classes, teacher: Classes, student: Classes) -> Interval:
    """The interval of the student's metric divided by the teacher's: a bootstrap that draws rows with both answers."""
    cells, counts = count_alike(truth, teacher, student)
    ratios = []
    for draws in bootstrap_draws(counts):
        theirs, ours = (_metric(metric, draws, cells[0], cells[which]) for which in (1, 2))
        # A draw in which the teacher gets nothing right has no ratio.
        ratios.append(ours[theirs > 0] / theirs[theirs > 0])
    return percentile_interval(np.concatenate(ratios))


def difference(metric: str, truth: Classes, teacher: Classes, student: Classes) -> float:
    """The student's metric minus the teacher's."""
    cells, counts = count_alike(truth, teacher, student)
    theirs, ours = (_metric(metric, counts[None, :], cells[0], cells[which])[0] for which in (1, 2))
    return float(ours - theirs)


def contributions(metric: str, truth: Classes, predicted: Classes) -> Floats:
    """What each row contributes to the metric [rows]."""
    return of_macro_f1(truth, predicted) if metric == "macroF1" else (truth == predicted).astype(np.float64)


def permutation_p_value(
    metric: str, truth: Classes, teacher: Classes, student: Classes, *, permutations: int = PERMUTATIONS
) -> float:
    """Two-sided p-value of a paired permutation test; for accuracy the same as that of McNemar's exact test."""
    if metric == "accuracy":
        # To swap a row on which both models are right, or both wrong, changes no accuracy. Each other row is a coin
        # toss.
        only_teacher = int(((teacher == truth) & (student != truth)).sum())
        only_student = int(((student == truth) & (teacher != truth)).sum())
        return sign_test(only_teacher, only_teacher + only_student)
    if np.array_equal(teacher, student):
        return 1.0
    return permutation_test(_MacroF1Swaps(truth, teacher, student), permutations=permutations)


class _MacroF1Swaps:
    """The difference of macro F1 after two models' answers were swapped in some rows.

    Attributes:
        counts: number of rows of each distinct row on which the two differ [cell].
    """

    def __init__(self, truth: Classes, teacher: Classes, student: Classes) -> None:
        size = int(max(truth.max(), teacher.max(), student.max())) + 1
        occurs = np.unique(truth)
        self._rows = np.bincount(truth, minlength=size)[occurs]
        # Predictions and hits of both models [class]; a class that does not occur has no part in macro F1.
        self._guesses = [np.bincount(each, minlength=size)[occurs] for each in (teacher, student)]
        self._hits = [np.bincount(truth[each == truth], minlength=size)[occurs] for each in (teacher, student)]
        differs = teacher != student
        (true, theirs, ours), self.counts = count_alike(truth[differs], teacher[differs], student[differs])
        # What one swapped row of a cell adds to the teacher's counts and takes from the student's [cell, class].
        self._more_guesses = (_one_hot(ours, size) - _one_hot(theirs, size))[:, occurs]
        gains = (ours == true).astype(np.int64) - (theirs == true)
        self._more_hits = _one_hot(true, size).multiply(gains[:, None]).tocsr()[:, occurs]

    def differences(self, swapped: NDArray[np.int64]) -> Floats:
        """Student minus teacher [outcome] for the number of swapped rows of each cell [outcome, cell]."""
        guesses, hits = swapped @ self._more_guesses, swapped @ self._more_hits
        # Never 0 / 0: every class here occurs, so it has rows. Swaps move only predictions and hits, never the truth.
        theirs = 2 * (self._hits[0] + hits) / (self._rows + self._guesses[0] + guesses)
        ours = 2 * (self._hits[1] - hits) / (self._rows + self._guesses[1] - guesses)
        found: Floats = (ours - theirs).mean(axis=1)
        return found


def confusion(truth: Classes, predicted: Classes, classes: int) -> NDArray[np.int64]:
    """Number of rows [true class, predicted class]."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


def _metric(metric: str, draws: NDArray[np.int64], truth: Classes, predicted: Classes) -> Floats:
    """The metric of each draw."""
    if metric == "accuracy":
        share: Floats = draws[:, truth == predicted].sum(axis=1) / draws.sum(axis=1)
        return share
    f1, occurs = _f1(draws, truth, predicted, int(max(truth.max(), predicted.max())) + 1)
    mean: Floats = (f1 * occurs).sum(axis=1) / occurs.sum(axis=1)
    return mean


def _f1(draws: NDArray[np.int64], truth: Classes, predicted: Classes, classes: int) -> tuple[Floats, NDArray[np.bool_]]:
    """F1 [draw, class], 0 for a class that neither occurs nor is predicted, and whether the class occurs."""
    rows, guesses = draws @ _one_hot(truth, classes), draws @ _one_hot(predicted, classes)
    # F1 is 2 TP / (2 TP + FP + FN). The rows of a class are TP + FN, and its predictions are TP + FP.
    hits = (draws * (truth == predicted)) @ _one_hot(truth, classes)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(2 * hits / (rows + guesses)), rows > 0


def _one_hot(classes: Classes, count: int) -> csr_array:
    """[cell, class], 1 for the class of the cell; sparse, so that 1,000 classes cost no more than two."""
    from scipy.sparse import csr_array  # takes a third of a second to import, and a stage needs none of this

    cells = len(classes)
    return csr_array((np.ones(cells), (np.arange(cells), classes)), shape=(cells, count))
