"""Regression: one text or a pair of texts to a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_api.task import Task
from distillchain_api.tasks.regression import Regression
from distillchain_trainer.stage_warnings import StageWarnings

if TYPE_CHECKING:
    from distillchain_trainer.tasks.regression.adapter import RegressionAdapter


def bind(task: Task, warnings: StageWarnings) -> RegressionAdapter:
    """The adapter of one task."""
    # Imported here because it loads torch, which the modules that only read rows do without.
    from distillchain_trainer.tasks.regression.adapter import RegressionAdapter

    assert isinstance(task, Regression)
    return RegressionAdapter(task, warnings)
