"""Linear layers that convert their weights to bfloat16 a second time in the backward pass.

Autograd would keep the converted weights of all layers from the forward pass on. That is two bytes for each parameter
of the model, on each GPU, although each holds only its part of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def recast_linear_layers(model: nn.Module) -> None:
    """Changes the linear layers of a model in place. They compute the same, to the last bit."""
    for module in model.modules():
        # Not a subclass, which may compute something else.
        if type(module) is nn.Linear:
            # Another class and not another module, so that no parameter is renamed.
            module.__class__ = RecastLinear


class RecastLinear(nn.Linear):
    """A linear layer that keeps its weight as it is, and not converted. Without autocast or gradients as any other."""

    def forward(self, values: Tensor) -> Tensor:
        """See the class."""
        kind = values.device.type
        if not (torch.is_autocast_enabled(kind) and torch.is_grad_enabled()):
            return super().forward(values)
        answer: Tensor = _Recast.apply(values, self.weight, self.bias, torch.get_autocast_dtype(kind))
        return answer


class _Recast(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        cast = values.to(dtype)
        context.save_for_backward(cast, weight)
        context.dtype = values.dtype
        return nn.functional.linear(cast, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = context.saved_tensors
        of_values, of_weight, of_bias, _ = context.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            (gradient @ weight.to(values.dtype)).to(context.dtype) if of_values else None,
            (rows.T @ values.reshape(-1, values.shape[-1])).to(weight.dtype) if of_weight else None,
            rows.sum(0).to(weight.dtype) if of_bias else None,
            None,
        )
