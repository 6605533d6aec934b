"""AdamW and the course of its learning rate, as transformers' Trainer sets them up."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from distillchain_api.resource.training import Training
from distillchain_trainer.engine.device.sharding import part_like

# Names that transformers' Trainer exempts from weight decay, besides the parameters of nn.LayerNorm.
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


def build_optimizer(model: nn.Module, training: Training, *, more: Iterable[nn.Parameter] = ()) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; biases and norms are not decayed.

    Parameters keep the order of `named_parameters`: saved moments are assigned by position.

    Args:
        more: parameters that are trained with the model and decayed.
    """
    # By class too, because a LayerNorm may have any name: GPT-2 calls its own ln_1 and ln_2.
    in_norms = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in in_norms and not NO_DECAY.search(name)].append(parameter)
    groups[True] += more
    on_gpu = next(model.parameters()).device.type == "cuda"
    rate = torch.tensor(training.learning_rate, device="cuda") if on_gpu else training.learning_rate
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": training.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        # On the GPU, so that a recorded step reads the rate of the moment, and its number with it.
        lr=rate,
        capturable=on_gpu,
        # betas and eps are the defaults of transformers' Trainer; the spec has no fields for them.
        betas=(0.9, 0.999),
        eps=1e-8,
        fused=True,  # one kernel for all parameters, as the Trainer does
    )


def learning_rate_at(step: int, steps: int, training: Training) -> float:
    """The learning rate of the optimizer step `step`, counted from 0: transformers' schedules as a pure function."""
    warmup = math.ceil(steps * training.warmup_ratio)
    # The first step has rate 0, as in transformers.
    if step < warmup:
        return training.learning_rate * step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    match training.scheduler:
        case "constant":
            share = 1.0
        case "linear":
            share = max(0.0, 1.0 - progress)
        case "cosine":
            share = max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return training.learning_rate * share


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For all parameter groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moments_of(optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors, by the position of each parameter."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{position}.{name}": value for position, values in state.items() for name, value in values.items()}


def set_moments(optimizer: torch.optim.AdamW, moments: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Restores what `moments_of` returned; of a moment that is split over the ranks, this rank's part."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in moments:
        position, _, name = key.partition(".")
        state.setdefault(int(position), {})[name] = part_like(value, parameters[int(position)])
    # The groups are those of this run: rates and decay come from the work order, not from a saved state.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
