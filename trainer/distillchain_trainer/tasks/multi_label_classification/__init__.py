"""Multi-label classification: one text or a pair of texts to any number of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_api.task import Task
from distillchain_api.tasks.multi_label_classification import MultiLabelClassification
from distillchain_trainer.stage_warnings import StageWarnings

if TYPE_CHECKING:
    from distillchain_trainer.tasks.multi_label_classification.adapter import MultiLabelClassificationAdapter


def bind(task: Task, warnings: StageWarnings) -> MultiLabelClassificationAdapter:
    """The adapter of one task."""
    # Imported here because it loads torch, which the modules that only read rows do without.
    from distillchain_trainer.tasks.multi_label_classification.adapter import MultiLabelClassificationAdapter

    assert isinstance(task, MultiLabelClassification)
    return MultiLabelClassificationAdapter(task, warnings)
