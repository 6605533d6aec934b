"""Text classification: one text or a pair of texts to one class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_api.task import Task
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_trainer.stage_warnings import StageWarnings

if TYPE_CHECKING:
    from distillchain_trainer.tasks.text_classification.adapter import TextClassificationAdapter


def bind(task: Task, warnings: StageWarnings) -> TextClassificationAdapter:
    """The adapter of one task."""
    # Imported here because it loads torch, which the modules that only read rows and labels do without.
    from distillchain_trainer.tasks.text_classification.adapter import TextClassificationAdapter

    assert isinstance(task, TextClassification)
    return TextClassificationAdapter(task, warnings)
