"""Where a model runs and with which numbers: device, autocast, TF32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from distillchain_api.resource.training import Precision, Training
from distillchain_trainer.engine.device.experts import expert_weights

LINEAR = (nn.Linear, Conv1D)
"""Linear layers of torch, and those of GPT-2, whose weights are transposed."""


def best_device() -> torch.device:
    """The GPU of this process if there is one."""
    # By its number, as the device of a tensor there has it: a GPU without a number is not equal to the same one.
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_of(model: Any) -> torch.device:
    """The device of a model's weights."""
    device: torch.device = next(model.parameters()).device
    return device


def autocast(device: torch.device, precision: Precision, *, keeps_casts: bool = True) -> torch.autocast:
    """bfloat16 where the recipe asks for it.

    Args:
        keeps_casts: weights are converted once, and kept in both forms until the outermost autocast ends.
    """
    # No GradScaler beside it: bfloat16 has the exponents of float32, so gradients do not underflow as in float16.
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=enabled and keeps_casts)


def apply_tf32(training: Training) -> None:
    """Sets for the whole process whether float32 products on a GPU may use TF32, whatever the environment says."""
    # This setting is of matrix products only. Convolutions in cuDNN have their own, which is on by default.
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = training.tf32


def choose_attention_kernels() -> None:
    """Leaves attention to the kernels that need no plan for each new shape.

    cuDNN's is chosen for bfloat16 with a mask and plans for a second (H100, torch 2.11): a pass over 67,349 rows in
    batches of many shapes took 3.9 s the first time and 0.3 s the second.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def compute_head_in_float32(model: Any, precision: Precision) -> None:
    """Takes the task's head out of autocast: its few products cost nothing, and logits keep all their digits.

    Not the head of a language model, which has up to a third of all weights.
    """
    body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if precision == "float32" or body is None or body is model:
        return
    of_words = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for module in model.children():
        if module is not body and module is not of_words and not isinstance(module, _Float32):
            # Another class and not another `forward`, so that copies of the model keep it; no parameter is renamed.
            kind = type(module)
            module.__class__ = type(kind.__name__, (_Float32, kind), {"__module__": kind.__module__})


def keep_products_in_bfloat16(model: Any, precision: Precision, *, frozen_only: bool = False) -> None:
    """Keeps the weights of linear layers as autocast would convert them for each pass, in half the memory.

    The answers stay the same, to the last bit: of a mixture of experts, those after `compute_experts_in_bfloat16`.

    For a model that is not trained, after `compute_head_in_float32`.

    Args:
        frozen_only: leave weights that are trained as they are.
    """
    if precision == "float32":
        return
    # Of all but linear layers, such as embeddings, also those that a linear layer shares; and of a head in float32.
    kept = {
        id(weight)
        for module in model.modules()
        if type(module) not in LINEAR
        for weight in module.parameters(recurse=isinstance(module, _Float32))
    }
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if frozen_only and any(weight.requires_grad for weight in own.values()):
            continue
        # Not a subclass of a linear layer, which may compute something else.
        if type(module) in LINEAR and not any(id(weight) in kept for weight in own.values()):
            module.to(torch.bfloat16)
        for name in expert_weights(module):
            own[name].data = own[name].data.to(torch.bfloat16)


class _Float32:
    """Before a module's own class: computes in float32, whatever autocast says."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        with torch.autocast(_device_type(inputs), enabled=False):
            return super().__call__(*(_float32(value) for value in inputs), **named)  # type: ignore[misc]


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _device_type(inputs: tuple[Any, ...]) -> str:
    return next((value.device.type for value in inputs if isinstance(value, torch.Tensor)), "cpu")
