"""Regression: one text or a pair of texts to a number."""

from __future__ import annotations

from typing import ClassVar, Literal

from distillchain_api.metrics import MAE, MSE, PEARSON, SPEARMAN, Metric
from distillchain_api.objectives import Objective
from distillchain_api.transfer import SequenceTask


class Regression(SequenceTask):
    """One text or a pair of texts to one number, such as a similarity or a rating."""

    metrics: ClassVar[tuple[Metric, ...]] = (PEARSON, SPEARMAN, MSE, MAE)
    outputs: ClassVar[Literal["Classes", "Labels", "Numbers", "Tokens"]] = "Numbers"
    default_objective: ClassVar[Objective] = "LogitMSE"

    type: Literal["Regression"]
    """Regression: one text or a pair of texts to one number."""
    metric: Literal["pearson", "spearman", "mse", "mae"] = "pearson"
    """The metric of gates and results. The correlations, from -1 to 1, do not depend on the unit of the numbers, so
    their gates carry over from one data set to another. mse (mean squared error) and mae (mean absolute error) are
    better when lower and in the unit of the numbers."""


TASK = Regression
