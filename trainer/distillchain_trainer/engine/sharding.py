"""Models of which each rank holds a part (FSDP2): weights, and of a student in training gradients and moments too.

A training with AdamW takes four times the memory of the weights. Of all of that a GPU holds its part, and one layer
whole while it computes. The host holds the weights whole: they are saved from there.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distillchain_trainer.engine.compiled import repeated_layers
from distillchain_trainer.engine.world import World


def shard(model: Any, world: World, *, device: torch.device) -> None:
    """Splits a model over all ranks. It comes from the CPU; its parts go to the device, a layer at a time."""
    mesh = init_device_mesh(device.type, (world.size,))
    # Layer by layer, so that a rank never holds more than one of them whole.
    for module in [*(layer for layer in repeated_layers(model) if layer is not model), model]:
        fully_shard(module, mesh=mesh)


def is_sharded(model: Any) -> bool:
    """Whether every pass of the model needs all ranks."""
    return isinstance(model, FSDPModule)


def sharded_copy(model: Any, world: World, *, device: torch.device) -> Any:
    """A copy for training of a model on the CPU, split over all ranks, its parts on `device`."""
    # New tensors over the same memory. `shard` gives them other memory, a layer at a time, so the host never holds a
    # second copy of all weights.
    shared: dict[int, Any] = {id(own): own.detach() for own in model.buffers()}
    for own in model.parameters():
        shared[id(own)] = nn.Parameter(own.detach(), requires_grad=own.requires_grad)
    sharded = copy.deepcopy(model, shared)
    shard(sharded, world, device=device)
    for module in sharded.modules():
        if isinstance(module, FSDPModule):
            # The sum of the gradients and not their mean: the loss of a row is divided by the rows of all ranks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)  # gloo has no other, and NCCL's is as fast
    return sharded


def gather_weights(sharded: Any, model: Any) -> None:
    """Gives the model that `sharded_copy` has copied the weights of the copy. All ranks call it."""
    with torch.no_grad():
        # One tensor after the other: on a GPU there is no room for all of them beside the training.
        for own, part in zip(model.parameters(), sharded.parameters(), strict=True):
            own.copy_(whole(part.detach()))


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each rank may hold a part. All ranks call it for the same tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that belongs to a parameter, such as a moment; all ranks have the same tensor."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    # None: every rank cuts its part out of its own copy, and nothing is sent.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
