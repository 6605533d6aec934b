"""Tests whether a classifier beats guessing, and whether its classes fit the labels better in another order. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillchain_api.metrics import format_share
from distillchain_trainer.tasks.sequences.assignment import best_assignment

Z_95 = 1.645  # one-sided 95 % of a normal distribution
SHUFFLES = 20  # of the predictions; a real order must fit better than the best of them, a 5 % chance for noise
CHANCE_SHUFFLES = 400  # enough for a 95 % quantile; a second for 100,000 rows
SEED = 20240229  # any fixed value: the same rows give the same verdict


def chance_to_beat(classes: Sequence[int], predicted: Sequence[int], *, metric: str) -> tuple[float, float]:
    """The accuracy of guessing, and the accuracy that a model must exceed to be better than guessing.

    With `accuracy` a guesser names the most frequent class. With `macroF1` that baseline means nothing: finding a rare
    class may cost accuracy, and a guesser reaches a higher macro F1 than the constant answer. There, chance is the
    accuracy of the same predictions in random order, as in Cohen's kappa.

    Returns: chance, and chance plus a one-sided 95 % margin; the latter is below 1.
    """
    rows, truth = len(classes), Counter(classes)
    if metric == "accuracy":
        chance = max(truth.values()) / rows
        needed = chance + Z_95 * math.sqrt(chance * (1 - chance) / rows)
    else:
        chance = sum(truth[index] * count for index, count in Counter(predicted).items()) / rows**2
        needed = _exceeded_by_few_shuffles(np.asarray(classes), np.asarray(predicted))
    # With very few rows only a perfect score is enough.
    return chance, min(needed, 1 - 0.5 / rows)


def _exceeded_by_few_shuffles(truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """The accuracy that at most 5 % of the orders of the predictions exceed.

    A binomial margin would be far too wide where most predictions are of one class: hits then vary little.
    """
    dice = np.random.default_rng(SEED)
    accuracies = [float((truth == dice.permutation(predicted)).mean()) for _ in range(CHANCE_SHUFFLES)]
    return float(np.quantile(accuracies, 0.95, method="higher"))


def doubt_of(accuracy: float, *, metric: str, classes: Sequence[int], predicted: Sequence[int]) -> str | None:
    """Why a model's predictions on validation may be guesses; None where they beat chance."""
    chance, needed = chance_to_beat(classes, predicted, metric=metric)
    if accuracy > needed:
        return None
    guesser = "always naming the most frequent class" if metric == "accuracy" else "guessing as often for each class"
    return (
        f"accuracy {format_share(accuracy, needed)} on {len(classes)} validation rows could be luck: {guesser} reaches "
        f"{format_share(chance)}, and so few rows need more than {format_share(needed)}"
    )


def best_order(classes: Sequence[int], predicted: Sequence[int], *, count: int) -> tuple[int, ...] | None:
    """The order of the model's classes that fits the labels best, if it fits significantly better than the given one.

    Returns: for each class of the task the model's class that stands for it; None: the given order is right, or the
        predictions are too poor to tell.
    """
    truth, answers = np.asarray(classes), np.asarray(predicted)
    table = _confusion(truth, answers, count)
    chance, needed = chance_to_beat(classes, predicted, metric="accuracy")
    rows, margin = len(classes), (needed - chance) * len(classes)

    def is_poor(hits: float) -> bool:
        # Too few to prove any order, or the given order is as good within the margin.
        return hits <= needed * rows or hits - int(np.trace(table)) <= margin

    # No order has more hits than this. Most models end here.
    if is_poor(int(table.max(axis=1).sum())):
        return None
    best, hits = best_assignment(table)
    if is_poor(hits):
        return None
    # With many classes the best of all orders fits even noise well, so noise is what it is compared with.
    dice = np.random.default_rng(SEED)
    by_luck = max(best_assignment(_confusion(truth, dice.permutation(answers), count))[1] for _ in range(SHUFFLES))
    return best if hits > by_luck else None


def _confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    table = np.zeros((count, count), dtype=np.int64)
    # Not `table[truth, predicted] += 1`, which counts equal pairs once.
    np.add.at(table, (truth, predicted), 1)
    return table
