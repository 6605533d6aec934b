"""The task types of the trainer, found by folder: TextClassification is in text_classification/."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

from distillchain_api.task import Task

if TYPE_CHECKING:
    from distillchain_trainer.stage_warnings import StageWarnings
    from distillchain_trainer.tasks.interface import TaskAdapter


def adapter_for(task: Task, warnings: StageWarnings) -> TaskAdapter:
    """The task type's own part of the trainer, bound to one task."""
    folder = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", task.type).lower()  # causal_lm for CausalLM
    adapter: TaskAdapter = importlib.import_module(f"{__name__}.{folder}").bind(task, warnings)
    return adapter
