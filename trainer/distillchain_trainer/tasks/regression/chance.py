"""Tests whether a regression beats guessing. Pure."""

from __future__ import annotations

import math

import numpy as np

from distillchain_api.metrics import format_value
from distillchain_api.tasks.regression import Regression
from distillchain_report.sections.regression.scores import Floats, constant_answer, metric_value

Z_95 = 1.645  # one-sided 95 % of a normal distribution


def doubt_of(task: Regression, truth: Floats, predicted: Floats) -> str | None:
    """Why a model's predictions on validation may be guesses; None where they beat chance.

    A guesser answers the same number for every row. Its correlation is 0, and its error is the spread of the numbers. A
    correlation must exceed what 5 % of random predictions reach; an error must be below the guesser's by more than the
    rows explain.
    """
    metric, rows = task.deciding_metric, len(truth)
    value, chance = metric_value(metric.name, truth, predicted), constant_answer(metric.name, truth)
    if metric.name in ("pearson", "spearman"):
        # Fisher's transformation: atanh(r) of unrelated rows has a standard error of 1 / sqrt(rows - 3).
        needed = math.tanh(Z_95 / math.sqrt(rows - 3)) if rows > 3 else 1.0
        guesser = "a guesser has a correlation of 0"
    else:
        answer, name = (truth.mean(), "mean") if metric.name == "mse" else (np.median(truth), "median")
        own, theirs = (_losses(metric.name, truth, numbers) for numbers in (predicted, np.full(rows, answer)))
        needed = chance - Z_95 * float((own - theirs).std()) / math.sqrt(rows)
        guesser = f"always answering the {name} reaches {format_value(chance, metric)}"
    if metric.is_better(value, needed):
        return None
    direction = "more" if metric.higher_is_better else "less"
    shown = format_value(value, metric, needed)
    return (
        f"{metric.display_name} {shown} on {rows} validation rows could be luck: {guesser}, and so few rows need "
        f"{direction} than {format_value(needed, metric)}"
    )


def _losses(metric: str, truth: Floats, predicted: Floats) -> Floats:
    """What each row adds to the metric [rows]."""
    errors = predicted - truth
    losses: Floats = errors**2 if metric == "mse" else np.abs(errors)
    return losses
