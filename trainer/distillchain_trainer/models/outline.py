"""A model that is split over the processes: rank 0 loads it, and the others build the same model without weights.

A model is built without weights on torch's meta device, where tensors have shapes and no memory. The checks of a model
compute with it, so they run on rank 0 alone. What they and the weights decide is handed to the others as an outline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from distillchain_api.base import Record
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.errors import TrainerError
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.tokenizers import set_padding_side

log = logging.getLogger(__name__)


class Outline(Record):
    """What ranks without the weights of a model need to know of it."""

    padding_side: str
    """Of its tokenizer, as the checks have set it."""
    tied: list[list[str]]
    """The names of each parameter. Whether two are one may depend on their weights."""
    shapes: dict[str, list[int]]
    """Of parameters and buffers."""


def load_on_main(load: Callable[[], Loaded], world: World) -> Loaded:
    """What `load` returns, with weights on rank 0 alone. All ranks call it.

    A model that cannot be built on the meta device is loaded by every rank; only the weights of rank 0 count.

    Raises: as `load`; LostPeers, TrainerError.
    """
    loaded = load() if world.is_main else _load_without_weights(load)
    outline = Outline.parse(world.from_main(lambda: outline_of(loaded).to_json(), "outline of a model"))
    if world.is_main:
        return loaded
    if not _has_shapes(loaded.model, outline):
        loaded = load()
    adopt(outline, loaded)
    return loaded


def outline_of(loaded: Loaded) -> Outline:
    """The outline of a model in memory."""
    return Outline(padding_side=loaded.tokenizer.padding_side, tied=_tied(loaded.model), shapes=_shapes(loaded.model))


def adopt(outline: Outline, loaded: Loaded) -> None:
    """Makes a model without weights agree with that of rank 0. Raises: TrainerError for another model."""
    model: nn.Module = loaded.model
    if not _has_shapes(model, outline):
        raise TrainerError(f"rank 0 has loaded another model than this rank for {loaded.start}; try again")
    set_padding_side(loaded.tokenizer, outline.padding_side)
    if outline.tied == _tied(model):
        return
    # transformers does not tie two weights that a checkpoint has with different values, whatever its config says.
    taken: set[int] = set()
    for names in outline.tied:
        parameter = model.get_parameter(names[0])
        if id(parameter) in taken:
            parameter = nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad)
        taken.add(id(parameter))
        for name in names:
            place, _, last = name.rpartition(".")
            setattr(model.get_submodule(place), last, parameter)


def _load_without_weights(load: Callable[[], Loaded]) -> Loaded:
    try:
        with torch.device("meta"):
            loaded = load()
    except Exception as error:  # a model type that computes while it is built; a faulty checkpoint fails below too
        log.info("a model cannot be built without its weights", extra={"why": type(error).__name__})
        return load()
    # Tensors that are neither parameters nor buffers are not sent, so they need their values.
    return load() if any(tensor.is_meta for tensor in _loose(loaded.model)) else loaded


def _loose(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold beside their parameters and buffers."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _has_shapes(model: nn.Module, outline: Outline) -> bool:
    return _shapes(model) == outline.shapes


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: list(tensor.shape) for name, tensor in named}


def _tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
