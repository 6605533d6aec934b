"""Tests whether a multi-label model beats guessing, and whether its labels fit better in another order. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distillchain_api.metrics import format_share
from distillchain_report.sections.multi_label_classification.scores import Labels, constant_answer, metric_value
from distillchain_trainer.tasks.sequences.assignment import best_assignment

CHANCE = 0.05  # how often a guesser may pass
SHUFFLES = 100  # of the predictions; enough for a 95 % quantile, a second for 100,000 rows and 28 labels
DRAWS = 400  # of the bootstrap
ORDER_SHUFFLES = 20  # a real order must fit better than the best of them, a 5 % chance for noise
SEED = 20240229  # any fixed value: the same rows give the same verdict


def doubt_of(truth: Labels, predicted: Labels, *, metric: str) -> str | None:
    """Why a model's predictions on validation may be guesses; None where they beat chance.

    Chance is judged on micro F1, whatever the metric of the task: a guesser who answers all labels reaches a macro F1
    that says nothing. Two guessers must be beaten: one who answers the same labels for every row, and one who gives the
    model's own answers in random order. The first is left out for macroF1, because finding rare labels may cost micro
    F1.
    """
    value, rows = metric_value("microF1", truth, predicted), len(truth)
    shuffled = _exceeded_by_few_shuffles(truth, predicted)
    guessers = [("the same answers in random order reach", shuffled)]
    if metric != "macroF1":
        constant = constant_answer("microF1", truth)
        guessers.append(("always answering the same labels reaches", constant + _margin(truth, predicted)))
    # With very few rows only a perfect score is enough.
    name, needed = max(guessers, key=lambda guesser: guesser[1])
    needed = min(needed, 1 - 0.5 / rows)
    if value > needed:
        return None
    return (
        f"micro F1 {format_share(value, needed)} on {rows} validation rows could be luck: {name} up to "
        f"{format_share(needed)} on so few rows"
    )


def _exceeded_by_few_shuffles(truth: Labels, predicted: Labels) -> float:
    """The micro F1 that at most 5 % of the orders of the predictions exceed."""
    dice = np.random.default_rng(SEED)
    total = int(truth.sum()) + int(predicted.sum())
    # Hits alone change with the order.
    hits = [int((truth & predicted[dice.permutation(len(truth))]).sum()) for _ in range(SHUFFLES)]
    return float(np.quantile(2 * np.asarray(hits) / max(total, 1), 1 - CHANCE, method="higher"))


def _margin(truth: Labels, predicted: Labels) -> float:
    """How far the micro F1 of the model may be above its true value in 5 % of all samples of so many rows."""
    dice, rows = np.random.default_rng(SEED), len(truth)
    draws = dice.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS)
    hits, sizes = (truth & predicted).sum(axis=1), truth.sum(axis=1) + predicted.sum(axis=1)
    values = 2 * (draws @ hits) / np.maximum(draws @ sizes, 1)
    return float(values.mean() - np.quantile(values, CHANCE))


def best_order(truth: Labels, logits: NDArray[np.float32]) -> tuple[int, ...] | None:
    """The order of the model's outputs that fits the labels best, if it fits significantly better than the given one.

    Returns: for each label of the task the output that stands for it; None: the given order is right, or the answers
        are too poor to tell.
    """
    answers = logits.astype(np.float64)
    fits = _correlations(truth, answers)
    best, fit = best_assignment(fits)
    gain = fit - float(np.trace(fits))
    # The best of all orders fits even noise, so noise is what it is compared with.
    dice = np.random.default_rng(SEED)
    noise = [_correlations(truth, answers[dice.permutation(len(answers))]) for _ in range(ORDER_SHUFFLES)]
    by_luck = max(best_assignment(found)[1] for found in noise)
    gain_by_luck = max(best_assignment(found)[1] - float(np.trace(found)) for found in noise)
    return best if fit > by_luck and gain > gain_by_luck else None


def _correlations(truth: Labels, answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each label with each output, [label, output]; 0 where one of them is constant."""
    one, other = truth - truth.mean(axis=0), answers - answers.mean(axis=0)
    norms = np.sqrt((one**2).sum(axis=0))[:, None] * np.sqrt((other**2).sum(axis=0))[None, :]
    found: NDArray[np.float64] = np.divide(one.T @ other, norms, out=np.zeros(norms.shape), where=norms > 0)
    return found
