"""How sure a number is: intervals on every metric, and a paired test between teacher and student. Knows no file.

Rows are taken as drawn independently; what is not looked at is the luck of training (other seeds).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import softmax as scipy_softmax
from scipy.stats import binomtest

from distillchain_api.wire.records import EXAMPLES

CONFIDENCE = 0.95
RESAMPLES = 2000  # the ends of a 95 % interval then wander by about 2 % of its width
RESAMPLES_AT_ONCE = 100
SEED = 20240229  # any; the same report from the same store

Classes = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """How two models did on the same rows: counts of rows."""

    both_right: int
    only_teacher_right: int
    only_student_right: int
    both_wrong: int

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how often equally good models would differ at least as lopsidedly; 1 for no pair."""
        discordant = self.only_teacher_right + self.only_student_right
        return float(binomtest(self.only_teacher_right, discordant, 0.5).pvalue) if discordant else 1.0


def paired(truth: Classes, teacher: Classes, student: Classes) -> Paired:
    """The four counts of McNemar's table."""
    theirs, ours = teacher == truth, student == truth
    return Paired(
        both_right=int((theirs & ours).sum()),
        only_teacher_right=int((theirs & ~ours).sum()),
        only_student_right=int((~theirs & ours).sum()),
        both_wrong=int((~theirs & ~ours).sum()),
    )


def share_interval(hits: int, rows: int) -> tuple[float, float]:
    """Wilson's score interval of a share (accuracy, recall and precision of a class)."""
    found = binomtest(hits, rows).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def metric_interval(metric: str, truth: Classes, predicted: Classes) -> tuple[float, float]:
    """Wilson's for accuracy; for macro F1 the percentiles of a bootstrap over rows."""
    if metric == "accuracy":
        return share_interval(int((truth == predicted).sum()), len(truth))
    cells, counts = _cells(truth, predicted)
    values = [_metric(metric, draws, cells[0], cells[1]) for draws in _draws(counts)]
    return _ends(np.concatenate(values))


def f1_intervals(truth: Classes, predicted: Classes, classes: int) -> list[tuple[float, float]]:
    """Of the F1 of each class: percentiles of a bootstrap over rows."""
    cells, counts = _cells(truth, predicted)
    values = np.concatenate([_f1(draws, cells[0], cells[1], classes)[0] for draws in _draws(counts)])
    return [_ends(column) for column in values.T]


def retention_interval(metric: str, truth: Classes, teacher: Classes, student: Classes) -> tuple[float, float]:
    """Of student's metric over teacher's on the same rows: percentiles of a bootstrap that draws whole rows."""
    cells, counts = _cells(truth, teacher, student)
    ratios = []
    for draws in _draws(counts):
        theirs, ours = (_metric(metric, draws, cells[0], cells[which]) for which in (1, 2))
        ratios.append(ours[theirs > 0] / theirs[theirs > 0])
    return _ends(np.concatenate(ratios))


def macro_f1(truth: Classes, predicted: Classes) -> float:
    """As the trainer measures it: a class that never occurs counts only when it was predicted."""
    cells, counts = _cells(truth, predicted)
    return float(_metric("macroF1", counts[None, :], cells[0], cells[1])[0])


def confusion(truth: Classes, predicted: Classes, classes: int) -> NDArray[np.int64]:
    """Rows [truth, predicted]."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


def softmax(logits: NDArray[np.floating]) -> Floats:
    """Probabilities [rows, classes]."""
    found: Floats = scipy_softmax(logits.astype(np.float64), axis=1)
    return found


def differences(teacher: Floats, student: Floats) -> Floats:
    """How far two models' probabilities [rows, classes] are apart, row by row: total variation, 0 to 1."""
    found: Floats = np.abs(teacher - student).sum(axis=1) / 2
    return found


def most_different(teacher: Floats, student: Floats, *, count: int = EXAMPLES) -> list[int]:
    """The rows that are furthest apart, the furthest first; of equals the earlier row."""
    return [int(row) for row in np.argsort(-differences(teacher, student), kind="stable")[:count]]


def _cells(*columns: Classes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different rows [column, cell], and how often each occurs: all a bootstrap over rows needs to know."""
    cells, counts = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
    return cells.T, counts.astype(np.int64)


def _draws(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Resampled counts [draw, cell]: drawing rows with replacement is a multinomial draw of their cells."""
    dice = np.random.default_rng(SEED)
    rows = int(counts.sum())
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        yield dice.multinomial(rows, counts / rows, size=RESAMPLES_AT_ONCE)


def _metric(metric: str, draws: NDArray[np.int64], truth: Classes, predicted: Classes) -> Floats:
    """The metric of each draw."""
    if metric == "accuracy":
        share: Floats = draws[:, truth == predicted].sum(axis=1) / draws.sum(axis=1)
        return share
    f1, occurs = _f1(draws, truth, predicted, int(max(truth.max(), predicted.max())) + 1)
    mean: Floats = f1.sum(axis=1) / occurs.sum(axis=1)
    return mean


def _f1(draws: NDArray[np.int64], truth: Classes, predicted: Classes, classes: int) -> tuple[Floats, NDArray[np.bool_]]:
    """F1 [draw, class], and whether the class occurs in the draw, or was predicted; 0 where it is neither."""
    occurs, guessed = draws @ _one_hot(truth, classes), draws @ _one_hot(predicted, classes)
    hits = (draws * (truth == predicted)) @ _one_hot(truth, classes)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(2 * hits / (occurs + guessed)), (occurs + guessed) > 0


def _one_hot(classes: Classes, count: int) -> sparse.csr_array:
    """[cell, class], 1 where the cell is of the class; sparse: a thousand classes cost no more than two."""
    cells = len(classes)
    return sparse.csr_array((np.ones(cells), (np.arange(cells), classes)), shape=(cells, count))


def _ends(values: Floats) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (0.0, 0.0)
    return float(low), float(high)
