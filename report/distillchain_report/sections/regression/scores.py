"""Scores of predicted numbers, and how sure they are. Truth and predictions are float64 [rows]. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distillchain_report.evidence.pseudo_values import of_pearson
from distillchain_report.statistics import BOOTSTRAP_DRAWS, PERMUTATIONS, SEED, Interval, percentile_interval

Floats = NDArray[np.float64]

# A bootstrap of a million rows would take minutes; fewer draws then give a coarser interval in seconds.
MAX_CELLS = 5_000_000
FEWEST_DRAWS = 100
AT_ONCE = 50
ROUNDING = 1e-12  # relative; of float64
TIE = 1e-12  # relative; rounding must not exclude outcomes that are as large as the measured one


def metric_value(metric: str, truth: Floats, predicted: Floats) -> float:
    """The metric of one model. A correlation with a constant is 0: such predictions say nothing about the rows."""
    return float(_metric(metric, truth, predicted[None, :], np.ones((1, len(truth))))[0])


def metric_interval(metric: str, truth: Floats, predicted: Floats) -> Interval:
    """The percentiles of a bootstrap over rows."""
    values = [_metric(metric, truth, predicted[None, :], draws) for draws in _draws(len(truth))]
    return percentile_interval(np.concatenate(values))


def contributions(metric: str, truth: Floats, predicted: Floats) -> Floats:
    """What each row contributes to the metric [rows]."""
    if metric in ("mse", "mae"):
        errors = np.abs(predicted - truth)
        return errors**2 if metric == "mse" else errors
    if metric == "spearman":
        ones = np.ones((1, len(truth)))
        truth, predicted = _ranks(truth, ones)[0], _ranks(predicted, ones)[0]
    return of_pearson(truth, predicted)


def permutation_p_value(
    metric: str, truth: Floats, teacher: Floats, student: Floats, *, permutations: int = PERMUTATIONS
) -> float:
    """Two-sided p-value of a paired permutation test, which swaps the two models' answers in random rows.

    It is (b + 1) / (m + 1) with b of m swaps that give at least the measured difference (Phipson and Smyth 2010).
    """
    if np.array_equal(teacher, student):
        return 1.0
    difference = metric_value(metric, truth, student) - metric_value(metric, truth, teacher)
    measured = abs(difference) * (1 - TIE)
    dice = np.random.default_rng(SEED)
    blocks = _affordable(len(truth), permutations) // AT_ONCE
    as_large = 0
    for _ in range(blocks):
        swapped = dice.integers(0, 2, size=(AT_ONCE, len(truth)), dtype=np.int8).astype(bool)
        ours, theirs = (_swapped(metric, truth, student, teacher, mask) for mask in (swapped, ~swapped))
        as_large += int((np.abs(ours - theirs) >= measured).sum())
    return (as_large + 1) / (blocks * AT_ONCE + 1)


def _swapped(metric: str, truth: Floats, own: Floats, other: Floats, mask: NDArray[np.bool_]) -> Floats:
    """The metric of `own` after the rows of `mask` [draws, rows] were taken from `other`, [draws]."""
    ones = np.ones(mask.shape)
    if metric != "spearman":
        return _metric(metric, truth, np.where(mask, other, own), ones)
    # Both models' values are sorted once; whether a value is there is its weight.
    ranks = _ranks(np.concatenate([own, other]), np.concatenate([~mask, mask], axis=1).astype(np.float64))
    chosen = np.where(mask, ranks[:, len(own) :], ranks[:, : len(own)])
    return _correlation(_ranks(truth, ones), chosen, ones)


def constant_answer(metric: str, truth: Floats) -> float:
    """The value of the metric for the best number that is answered for every row."""
    if metric == "mse":
        return float(truth.var())
    if metric == "mae":
        return float(np.abs(truth - np.median(truth)).mean())
    return 0.0


def _metric(metric: str, truth: Floats, predicted: Floats, weights: Floats) -> Floats:
    """The metric of each draw.

    Args:
        predicted: [1 or draws, rows].
        weights: how often each row is drawn, [draws, rows].
    """
    if metric in ("mse", "mae"):
        errors = predicted - truth
        errors = errors**2 if metric == "mse" else np.abs(errors)
        mean: Floats = (weights * errors).sum(axis=1) / weights.sum(axis=1)
        return mean
    if metric == "spearman":
        return _correlation(_ranks(truth, weights), _ranks(predicted[0], weights), weights)
    return _correlation(np.broadcast_to(truth, weights.shape), np.broadcast_to(predicted, weights.shape), weights)


def _correlation(one: Floats, other: Floats, weights: Floats) -> Floats:
    """Pearson's correlation of weighted rows, [draws]; 0 where one side is constant."""
    one, other = _centred(one, weights), _centred(other, weights)
    norms = np.sqrt((weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1))
    shared = (weights * one * other).sum(axis=1)
    found: Floats = np.divide(shared, norms, out=np.zeros(len(norms)), where=norms > 0)
    return np.clip(found, -1.0, 1.0)


def _centred(values: Floats, weights: Floats) -> Floats:
    """Values minus their weighted mean; exactly 0 where all are equal but for rounding."""
    centred = values - (weights * values).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    spread = np.abs(centred).max(axis=1, keepdims=True)
    kept: Floats = np.where(spread > ROUNDING * np.abs(values).max(axis=1, keepdims=True), centred, 0.0)
    return kept


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Ranks of weighted rows, [draws, rows]; equal values share the mean of their ranks, as in scipy's rankdata."""
    distinct, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    # The mean of the ranks of n equal values after m smaller ones is m + (n + 1) / 2.
    means = np.cumsum(counts, axis=1) - counts + (counts + 1) / 2
    ranks: Floats = means[:, place]
    return ranks


def _draws(rows: int) -> Iterator[Floats]:
    """How often each row is drawn, [draw, row], in blocks."""
    dice = np.random.default_rng(SEED)
    for _ in range(_affordable(rows, BOOTSTRAP_DRAWS) // AT_ONCE):
        yield dice.multinomial(rows, np.full(rows, 1 / rows), size=AT_ONCE).astype(np.float64)


def _affordable(rows: int, wanted: int) -> int:
    """How many draws are made of so many rows; a multiple of AT_ONCE."""
    return max(FEWEST_DRAWS, math.ceil(min(wanted, MAX_CELLS / rows) / AT_ONCE) * AT_ONCE)
