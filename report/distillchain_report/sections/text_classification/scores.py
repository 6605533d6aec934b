"""Accuracy and macro F1: values, chance levels, bootstrap intervals and the paired permutation test.

All of it works on counts of distinct rows ("cells") instead of the rows themselves, so that its cost does not grow with
the number of rows: drawing rows with replacement is a multinomial draw of cells, and swapping two models' answers in
some rows of a cell is a binomial draw.

Macro F1 averages over the classes that occur in the truth, as the trainer measures it. In a bootstrap draw these are
the classes that occur in that draw: the same definition is applied to the drawn rows. A fixed set of classes would
count a rare class as 0 in every draw that happens to miss it, and push the interval down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distillchain_report.evidence.pseudo_values import of_macro_f1
from distillchain_report.statistics import (
    BOOTSTRAP_DRAWS,
    PERMUTATIONS,
    SEED,
    Interval,
    heads_probability,
    percentile_interval,
    share_interval,
    sign_test,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_array

AT_ONCE = 100  # draws held in memory; with 1,000 classes and 5,000 distinct rows about 4 MB an array
EXACT_OUTCOMES = 1 << 14  # up to here, listing all outcomes of the permutation test costs no more than drawing some
TIE = 1e-9  # two differences that are equal but for rounding

Classes = NDArray[np.int64]
Floats = NDArray[np.float64]


def macro_f1(truth: Classes, predicted: Classes) -> float:
    """Mean F1 of the classes that occur in the truth."""
    cells, counts = _cells(truth, predicted)
    return float(_metric("macroF1", counts[None, :], cells[0], cells[1])[0])


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
    cells, counts = _cells(truth, predicted)
    return percentile_interval(np.concatenate([_metric(metric, draws, *cells) for draws in _draws(counts)]))


def f1_intervals(truth: Classes, predicted: Classes, classes: int) -> list[Interval]:
    """The interval of each class's F1, from a bootstrap over rows; draws without a row of the class do not count."""
    cells, counts = _cells(truth, predicted)
    values = []
    for draws in _draws(counts):
        f1, occurs = _f1(draws, cells[0], cells[1], classes)
        # A draw without a row of the class says nothing about its F1. As 0 it would push the interval down.
        values.append(np.where(occurs, f1, np.nan))
    return [percentile_interval(column) for column in np.concatenate(values).T]


def retention_interval(metric: str, truth: Classes, teacher: Classes, student: Classes) -> Interval:
    """The interval of the student's metric divided by the teacher's: a bootstrap that draws rows with both answers."""
    cells, counts = _cells(truth, teacher, student)
    ratios = []
    for draws in _draws(counts):
        theirs, ours = (_metric(metric, draws, cells[0], cells[which]) for which in (1, 2))
        # A draw in which the teacher gets nothing right has no ratio.
        ratios.append(ours[theirs > 0] / theirs[theirs > 0])
    return percentile_interval(np.concatenate(ratios))


def difference(metric: str, truth: Classes, teacher: Classes, student: Classes) -> float:
    """The student's metric minus the teacher's."""
    cells, counts = _cells(truth, teacher, student)
    theirs, ours = (_metric(metric, counts[None, :], cells[0], cells[which])[0] for which in (1, 2))
    return float(ours - theirs)


def contributions(metric: str, truth: Classes, predicted: Classes) -> Floats:
    """What each row contributes to the metric [rows]."""
    return of_macro_f1(truth, predicted) if metric == "macroF1" else (truth == predicted).astype(np.float64)


def permutation_p_value(
    metric: str, truth: Classes, teacher: Classes, student: Classes, *, permutations: int = PERMUTATIONS
) -> float:
    """Two-sided p-value of a paired permutation test.

    Under the null hypothesis the two models are interchangeable: in each row their answers could as well be swapped.
    The p-value is the share of all ways to swap that give a difference of the metric at least as large as the measured
    one. It is exact for accuracy, where it equals McNemar's exact test, and where few rows differ; elsewhere it is
    (b + 1) / (m + 1) with b of m random swaps (Phipson and Smyth 2010), which is never too small.
    """
    if metric == "accuracy":
        # To swap a row on which both models are right, or both wrong, changes no accuracy. Each other row is a coin
        # toss.
        only_teacher = int(((teacher == truth) & (student != truth)).sum())
        only_student = int(((student == truth) & (teacher != truth)).sum())
        return sign_test(only_teacher, only_teacher + only_student)
    if np.array_equal(teacher, student):
        return 1.0
    swaps = _MacroF1Swaps(truth, teacher, student)
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
        (true, theirs, ours), self.counts = _cells(truth[differs], teacher[differs], student[differs])
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


def _cells(*columns: Classes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows [column, cell], and how often each occurs [cell]."""
    cells, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return cells.T, counts.astype(np.int64)


def _draws(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Counts of resampled rows [draw, cell]."""
    dice = np.random.default_rng(SEED)
    rows = int(counts.sum())
    for _ in range(BOOTSTRAP_DRAWS // AT_ONCE):
        yield dice.multinomial(rows, counts / rows, size=AT_ONCE)


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
