"""torch.compile for the layers of a model: they are alike, so one compilation serves them all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def can_compile() -> bool:
    """Whether there is a C compiler, with which Triton builds the launchers of its kernels."""
    return any(map(shutil.which, [os.environ.get("CC") or "cc", "gcc", "clang"]))


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the largest stack; the model itself if it has no stack of at least two."""
    return largest_stack(model, at_least=2) or [model]


def largest_stack(model: nn.Module, *, at_least: int) -> list[nn.Module]:
    """The stack of modules of one class that has the most parameters; empty if no stack has so many modules."""
    stacks = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [stack for stack in stacks if len(stack) >= at_least and len({type(layer) for layer in stack}) == 1]
    return max(alike, key=_parameters, default=[])


def compile_layers(model: nn.Module) -> None:
    """Replaces `forward` of the layers by a compiled one; the first steps then take seconds longer."""
    for layer in repeated_layers(model):
        # Not layer.compile(), which cannot be undone. The module's class, name and parameters stay as they are.
        compiled: Any = torch.compile(layer.forward)
        layer.forward = compiled


def uncompile_layers(model: nn.Module) -> None:
    """Undoes compile_layers."""
    for layer in repeated_layers(model):
        layer.__dict__.pop("forward", None)


@contextmanager
def without_compiled_layers(model: nn.Module) -> Iterator[None]:
    """Within this, layers compute as they are. Passes of other shapes or without gradients would be compiled first."""
    compiled = {layer: layer.__dict__.pop("forward") for layer in repeated_layers(model) if "forward" in layer.__dict__}
    try:
        yield
    finally:
        for layer, forward in compiled.items():
            layer.forward = forward


def _parameters(layers: list[nn.Module]) -> int:
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())
