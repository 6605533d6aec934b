"""Small models with a LoRA adapter."""

from __future__ import annotations

from typing import Any

import torch

from distillchain_api.resource.lora import Lora
from distillchain_trainer.models.lora import add_adapter


def with_adapter(model: Any, *, moved: bool = False, seed: int = 3, **fields: Any) -> Any:
    """The model with an adapter; `moved`: as if it had been trained."""
    add_adapter(model, Lora.parse({"rank": 2, "alpha": 4, **fields}), seed=seed, field="spec.stages[0].student.lora")
    if moved:
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    return model
