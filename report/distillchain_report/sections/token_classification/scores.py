"""Entity F1 and token accuracy: values, chance level, bootstrap intervals and the paired permutation test.

Both are ratios of sums over sentences, so sentences are drawn, and swapped between two models, as a whole: the words of
a sentence are not independent. All of it works on counts of sentences that are alike (alike_rows.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillchain_report.alike_rows import bootstrap_draws, count_alike, permutation_test
from distillchain_report.sections.token_classification.entities import Ints, count_entities
from distillchain_report.sections.token_classification.predictions import Predictions
from distillchain_report.statistics import PERMUTATIONS, SEED, Interval, percentile_interval, share_percentiles

CHANCE_SHUFFLES = 20  # for a mean; it varies by less than a thousandth

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A metric as a ratio of sums over sentences: above / below, both [sentences]."""

    above: Ints
    below: Ints

    @property
    def value(self) -> float:
        """The metric on all sentences; 0 where nothing is below."""
        below = int(self.below.sum())
        return float(self.above.sum() / below) if below else 0.0


def ratio_of(metric: str, answers: Predictions) -> Ratio:
    """A metric of the task type."""
    if metric == "tokenAccuracy":
        hits = (answers.truth == answers.predicted).astype(np.int64)
        ends = np.concatenate([[0], np.cumsum(hits)])[answers.starts]
        return Ratio(np.diff(ends), np.diff(answers.starts))
    counts = answers.counts
    # F1 is 2 TP / (2 TP + FP + FN).
    return Ratio(2 * counts.right.sum(1), (counts.true + counts.predicted).sum(1))


def chance_level(metric: str, answers: Predictions) -> float:
    """What guessing reaches: always giving the most frequent tag, or for entity F1 the same tags in random order."""
    if metric == "tokenAccuracy":
        return float(np.bincount(answers.truth).max() / len(answers.truth))
    return float(np.mean(shuffled_f1(answers, CHANCE_SHUFFLES)))


def shuffled_f1(answers: Predictions, shuffles: int) -> Floats:
    """Entity F1 of the predicted tags in random order [shuffles]."""
    dice = np.random.default_rng(SEED)
    found = [
        count_entities(answers.truth, dice.permutation(answers.predicted), answers.starts, answers.scheme).f1
        for _ in range(shuffles)
    ]
    return np.array(found)


def interval(ratio: Ratio) -> Interval:
    """The interval of a ratio: a bootstrap over sentences. Draws without anything below do not count."""
    (above, below), counts = count_alike(ratio.above, ratio.below)
    values = np.concatenate([_divided(draws @ above, draws @ below) for draws in bootstrap_draws(counts)])
    return share_percentiles(values, rows=int((ratio.below > 0).sum()))


def retention_interval(teacher: Ratio, student: Ratio) -> Interval:
    """The interval of student / teacher: a bootstrap that draws sentences with the answers of both."""
    cells, counts = count_alike(teacher.above, teacher.below, student.above, student.below)
    found = []
    for draws in bootstrap_draws(counts):
        theirs, ours = (_divided(draws @ cells[place], draws @ cells[place + 1]) for place in (0, 2))
        found.append(_divided(ours, theirs))
    return percentile_interval(np.concatenate(found))


def permutation_p_value(teacher: Ratio, student: Ratio, *, permutations: int = PERMUTATIONS) -> float:
    """Two-sided p-value of a paired permutation test, which swaps whole sentences."""
    differs = (teacher.above != student.above) | (teacher.below != student.below)
    if not differs.any():
        return 1.0
    return permutation_test(_Swaps(teacher, student, differs), permutations=permutations)


class _Swaps:
    """The difference of a metric after two models' answers were swapped in some sentences.

    Attributes:
        counts: number of sentences of each cell on which the two differ [cell].
    """

    def __init__(self, teacher: Ratio, student: Ratio, differs: NDArray[np.bool_]) -> None:
        cells, self.counts = count_alike(
            teacher.above[differs], teacher.below[differs], student.above[differs], student.below[differs]
        )
        # What one swapped sentence of a cell adds to the teacher's sums and takes from the student's.
        self._more_above, self._more_below = cells[2] - cells[0], cells[3] - cells[1]
        self._teacher = int(teacher.above.sum()), int(teacher.below.sum())
        self._student = int(student.above.sum()), int(student.below.sum())

    def differences(self, swapped: Ints) -> Floats:
        """Student minus teacher [outcome] for the number of swapped sentences of each cell [outcome, cell]."""
        above, below = swapped @ self._more_above, swapped @ self._more_below
        theirs = _divided(self._teacher[0] + above, self._teacher[1] + below)
        ours = _divided(self._student[0] - above, self._student[1] - below)
        found: Floats = np.nan_to_num(ours) - np.nan_to_num(theirs)
        return found


def _divided(above: NDArray[np.number], below: NDArray[np.number]) -> Floats:
    """Their ratio; not a number where nothing is below."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(below > 0, above / below, np.nan)
        return found
