"""Where a model runs and with which numbers: device, autocast, TF32."""

from __future__ import annotations

from typing import Any

import torch

from distillchain_api.resource.spec import Precision, Training


def best_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: Any) -> torch.device:
    """The device of a model's weights."""
    device: torch.device = next(model.parameters()).device
    return device


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """bfloat16 where the recipe asks for it."""
    # No GradScaler beside it: bfloat16 has the exponents of float32, so gradients do not underflow as in float16.
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def apply_tf32(training: Training) -> None:
    """Sets for the whole process whether float32 products on a GPU may use TF32, whatever the environment says."""
    # This setting is of matrix products only. Convolutions in cuDNN have their own, which is on by default.
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = training.tf32
