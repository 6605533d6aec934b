"""Token classification: a tag for each word of a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_api.task import Task
from distillchain_api.tasks.token_classification import TokenClassification
from distillchain_trainer.stage_warnings import StageWarnings

if TYPE_CHECKING:
    from distillchain_trainer.tasks.token_classification.adapter import TokenClassificationAdapter


def bind(task: Task, warnings: StageWarnings) -> TokenClassificationAdapter:
    """The adapter of one task."""
    # Imported here because it loads torch, which the modules that only read rows and labels do without.
    from distillchain_trainer.tasks.token_classification.adapter import TokenClassificationAdapter

    assert isinstance(task, TokenClassification)
    return TokenClassificationAdapter(task, warnings)
