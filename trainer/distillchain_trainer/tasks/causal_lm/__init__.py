"""Language modelling: the next token of plain texts, completions or chats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distillchain_api.task import Task
from distillchain_api.tasks.causal_lm import CausalLM
from distillchain_trainer.stage_warnings import StageWarnings

if TYPE_CHECKING:
    from distillchain_trainer.tasks.causal_lm.adapter import CausalLMAdapter


def bind(task: Task, warnings: StageWarnings) -> CausalLMAdapter:
    """The adapter of one task."""
    # Imported here because it loads torch, which the modules that only read rows do without.
    from distillchain_trainer.tasks.causal_lm.adapter import CausalLMAdapter

    assert isinstance(task, CausalLM)
    return CausalLMAdapter(task, warnings)
