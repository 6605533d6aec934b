"""Copies from the host to a GPU that nothing waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the host continues while it is copied."""
    if tensor.device == device:
        return tensor
    # A copy from memory that is not pinned waits for everything that was launched before.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def all_moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Each tensor as by `moved`."""
    return {name: moved(tensor, device) for name, tensor in tensors.items()}


def row_numbers(rows: Sequence[int], device: torch.device) -> Tensor:
    """int64 [rows] on `device`."""
    return moved(torch.tensor(rows, dtype=torch.long), device)
