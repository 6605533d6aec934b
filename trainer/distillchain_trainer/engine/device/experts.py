"""Experts of a mixture: grouped products that autocast does not reach (pytorch issue 174763)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distillchain_api.resource.training import Precision

NAMES = {"gate_up_proj", "gate_proj", "up_proj", "down_proj"}


def expert_weights(module: nn.Module) -> tuple[str, ...]:
    """Names of the weights [experts, rows, columns] that a module of transformers has of its own."""
    return tuple(name for name, own in module.named_parameters(recurse=False) if name in NAMES and own.dim() == 3)


def compute_experts_in_bfloat16(model: nn.Module, precision: Precision) -> None:
    """Converts the weights of experts in each pass within autocast, as autocast does with those of linear layers.

    The weights themselves stay in float32, so that a training can add small changes to them.
    """
    if precision == "float32":
        return
    for module in model.modules():
        names = expert_weights(module)
        # `has_gate` marks the modules with grouped products. Others, such as Llama 4's, have products that autocast
        # reaches, and some read the weights once for each expert.
        if names and hasattr(module, "has_gate") and not isinstance(module, _Converts):
            # Another class and not another module, so that no parameter is renamed.
            module.__class__ = _converting(type(module), names)  # type: ignore[arg-type]  # classes can be hashed


def take_converting_experts(model: nn.Module) -> list[nn.Module]:
    """Undoes `compute_experts_in_bfloat16`. Returns: the modules that it had changed."""
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, _Converts)]
    for module in found:
        _, module.__class__ = type(module).__bases__
    return found


class _Converts:
    """Marks the classes of `_converting`."""


@functools.cache  # layers of one class share what torch.compile makes of them
def _converting(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    converted = {name: property(_converted(name)) for name in names}
    return type(kind.__name__, (_Converts, kind), {"__module__": kind.__module__, **converted})


def _converted(name: str) -> Callable[[nn.Module], Tensor]:
    def weight(module: nn.Module) -> Tensor:
        own = nn.Module.__getattr__(module, name)  # not `getattr`, which would find the property
        assert isinstance(own, Tensor)
        kind = own.device.type
        return own.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else own

    return weight
