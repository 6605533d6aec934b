"""Models that are divided among the ranks (FSDP2): weights, and for a student in training gradients and moments too.

A training with AdamW takes four times the memory of the weights. A GPU holds its part of all that, and one whole layer
while it computes. Only the host of rank 0 holds all weights: they are loaded, saved and sent from there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from distillchain_api.faults import got
from distillchain_trainer.engine.device.compiled import repeated_layers
from distillchain_trainer.engine.device.experts import take_converting_experts
from distillchain_trainer.engine.device.recast import recast_linear_layers
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.errors import CheckpointInvalid

EXPERTS_POLICY = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
)
"""Sends experts in bfloat16. Otherwise autograd would keep what each pass converts, of all layers, on each GPU."""


def shard(model: Any, world: World, *, device: torch.device) -> None:
    """Splits a model over all ranks: rank 0 sends its weights, a layer at a time, and each rank keeps its part.

    Args:
        model: on the CPU; on other ranks than 0 its weights do not count and may be on the meta device.
        device: of the parts.
    Raises: CheckpointInvalid for a model whose layers share a weight.
    """
    layers = [layer for layer in repeated_layers(model) if layer is not model]
    _refuse_shared_weights(model, layers)
    mesh = init_device_mesh(device.type, (world.size,))
    places = _places(model)
    experts = take_converting_experts(model)
    # Layer by layer, so that a rank never holds more than one of them whole.
    for module in [*experts, *layers, model]:
        _receive((own for own in module.parameters() if not isinstance(own, DTensor)), places, world, device=device)
        fully_shard(module, mesh=mesh, mp_policy=EXPERTS_POLICY if module in experts else MixedPrecisionPolicy())
    # Also those that are in no state dict, such as the frequencies of rotary positions.
    _receive(model.buffers(), places, world, device=device)


def _refuse_shared_weights(model: Any, layers: Iterable[nn.Module]) -> None:
    """Raises: CheckpointInvalid. FSDP splits each layer by itself, so a weight can belong to one of them alone."""
    own = set(layers)
    prefixes = [f"{name}." for name, module in model.named_modules(remove_duplicate=False) if module in own]
    first: dict[int, tuple[str, str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        layer = next(filter(name.startswith, prefixes), "")
        other, other_layer = first.setdefault(id(weight), (name, layer))
        if layer != other_layer:
            raise CheckpointInvalid(
                f"parallelism.sharding: {got('Full')}, expected None for this {model.config.model_type}: {other} and "
                f"{name} are one weight, which cannot be split layer by layer; remove it, or use another model"
            )


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The modules and names of each parameter and buffer. Tied ones have several."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, own in chain(
            module.named_parameters(recurse=False, remove_duplicate=False),
            module.named_buffers(recurse=False, remove_duplicate=False),
        ):
            found.setdefault(id(own), []).append((module, name))
    return found


def _receive(
    tensors: Iterable[Tensor],
    places: dict[int, list[tuple[nn.Module, str]]],
    world: World,
    *,
    device: torch.device,
) -> None:
    """Puts tensors with the values of rank 0, on the device, in the place of the given ones."""
    own = list(tensors)
    values = [
        tensor.detach().to(device) if world.is_main else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        for tensor in own
    ]
    world.copy_from_main(values)
    for tensor, value in zip(own, values, strict=True):
        is_parameter = isinstance(tensor, nn.Parameter)
        new = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value
        for module, name in places[id(tensor)]:
            setattr(module, name, new)


def is_sharded(model: Any) -> bool:
    """Whether every pass of the model needs all ranks."""
    return isinstance(model, FSDPModule)


def sharded_copy(model: Any, world: World, *, device: torch.device) -> Any:
    """A copy for training of a model, split over all ranks; see `shard`. The model itself stays as it is."""
    # New tensors over the same memory. `shard` puts others in their place, a layer at a time, so the host never holds
    # a second copy of all weights.
    shared: dict[int, Any] = {id(own): own.detach() for own in model.buffers()}
    for own in model.parameters():
        shared[id(own)] = nn.Parameter(own.detach(), requires_grad=own.requires_grad)
    sharded = copy.deepcopy(model, shared)
    recast_linear_layers(sharded)
    shard(sharded, world, device=device)
    for module in sharded.modules():
        if isinstance(module, FSDPModule):
            # The sum of the gradients and not their mean: the loss of a row is divided by the rows of all ranks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(enable=True)  # gloo has no other, and NCCL's is as fast
    return sharded


def gather_weights(sharded: Any, model: Any, world: World) -> None:
    """Gives the model that `sharded_copy` has copied the weights of the copy, on rank 0. All ranks call it."""
    with torch.no_grad():
        # One tensor after the other: on a GPU there is no room for all of them beside the training.
        for own, part in zip(model.parameters(), sharded.parameters(), strict=True):
            value = whole(part.detach())
            if world.is_main:
                own.copy_(value)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, if each rank holds a part of it. All ranks call it for the same tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a tensor that belongs to a parameter, such as a moment; all ranks have the same tensor."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    # None: every rank cuts its part out of its own copy, and nothing is sent.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
