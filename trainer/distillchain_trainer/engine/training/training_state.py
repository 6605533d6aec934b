"""The state of a training on disk: weights, moments and random numbers as safetensors, nothing pickled.

A training that is resumed from it by as many processes makes the same steps, bit for bit, as one that was never
interrupted. Each rank draws its own random numbers, so there is a file with them for each.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from distillchain_trainer.engine.device.sharding import whole
from distillchain_trainer.engine.ranks.world import ALONE, World
from distillchain_trainer.engine.training.optimizer import moments_of, set_moments

WEIGHTS = "model.safetensors"
MOMENTS = "optimizer.safetensors"
EXTRA = "extra.safetensors"  # parameters that are trained with the model and are not part of it
RANDOM = "random-{rank}.safetensors"
OTHERS = "others"  # the note in such a file that holds what is no tensor


def set_seed(seed: int) -> None:
    """Seeds every generator that models draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # all GPUs too


def save_weights(model: Any, folder: Path, *, name: str = WEIGHTS) -> None:
    """The weights alone, for `load_weights`; of a model with frozen ones (LoRA), those that are trained."""
    folder.mkdir(parents=True, exist_ok=True)
    if frozen := _frozen(model):
        kept = {key: tensor for key, tensor in model.state_dict().items() if key not in frozen}
        safetensors.torch.save_file(kept, folder / name)
        return
    # save_model and not save_file, which refuses tensors that share memory, such as tied embeddings.
    safetensors.torch.save_model(model, str(folder / name))


def load_weights(model: Any, folder: Path, *, name: str = WEIGHTS) -> None:
    """Loads what `save_weights` wrote. Raises: RuntimeError when a weight is missing or left over."""
    if frozen := _frozen(model):
        found = model.load_state_dict(safetensors.torch.load_file(folder / name), strict=False)
        if missing := set(found.missing_keys) - frozen:
            raise RuntimeError(f"{folder / name}: missing {sorted(missing)}")
        if found.unexpected_keys:
            raise RuntimeError(f"{folder / name}: left over {found.unexpected_keys}")
        return
    safetensors.torch.load_model(model, folder / name)


def _frozen(model: Any) -> set[str]:
    """Names of the parameters that are not trained, by every name that they have."""
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


@dataclass(frozen=True)
class RandomState:
    """The state of every generator that models draw from."""

    tensors: dict[str, torch.Tensor]
    others: dict[str, Any]
    """JSON values, except for tuples."""


def random_state() -> RandomState:
    """The state now."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    # The tuple form, because all of its parts but the array of keys are values of JSON.
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    numpy = [name, np.asarray(keys).tolist(), position, has_gauss, gauss]
    return RandomState(tensors, {"python": random.getstate(), "numpy": numpy})


def set_random_state(state: RandomState) -> None:
    """Continues the random numbers from `state`."""
    # JSON has made lists of the tuples, and setstate takes only a tuple.
    version, internal, gauss = state.others["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state.others["numpy"]))
    torch.set_rng_state(state.tensors["torch"])
    # A state may be resumed on a machine with another device; the result is then not equal to the last bit.
    if torch.cuda.is_available() and "cuda" in state.tensors:
        torch.cuda.set_rng_state(state.tensors["cuda"])


def save_state(
    folder: Path,
    model: Any,
    optimizer: torch.optim.AdamW,
    world: World = ALONE,
    *,
    extra: torch.nn.Module | None = None,
) -> None:
    """Everything that the next step depends on, except the step's number. All ranks call it; rank 0 writes.

    Args:
        model: with all weights on rank 0, also where the training splits them over the ranks.
        extra: holds parameters that are trained with the model and are not part of it.
    """
    everyones = world.gather(np.frombuffer(_packed(random_state()), dtype=np.uint8))
    moments = {}
    for name, part in moments_of(optimizer).items():
        moment = whole(part)
        if world.is_main:
            # One that was split does not fit the GPU beside all others.
            moments[name] = moment if moment is part else moment.cpu()
    if not world.is_main:
        return
    save_weights(model, folder)  # creates the folder
    safetensors.torch.save_file(moments, folder / MOMENTS)
    if extra is not None:
        safetensors.torch.save_file(extra.state_dict(), folder / EXTRA)
    for rank, packed in enumerate(everyones):
        (folder / RANDOM.format(rank=rank)).write_bytes(packed.tobytes())


def load_state(
    folder: Path, optimizer: torch.optim.AdamW, world: World = ALONE, *, extra: torch.nn.Module | None = None
) -> None:
    """Restores what `save_state` wrote, but for the weights, which `load_weights` restores.

    A rank that the state knows nothing of keeps its present random numbers; see `changed_processes`.
    """
    device = optimizer.param_groups[0]["params"][0].device
    if extra is not None:
        extra.load_state_dict(safetensors.torch.load_file(folder / EXTRA))
    set_moments(optimizer, _tensors_of(folder / MOMENTS, device))
    own = folder / RANDOM.format(rank=world.rank)
    # Random numbers last, so that nothing that is loaded before can draw from them.
    if own.exists():
        set_random_state(_unpacked(own))


def _tensors_of(path: Path, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file one by one: of those that are split, a GPU cannot hold all whole."""
    with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
        names = file.keys()
        for name in names:
            yield name, file.get_tensor(name)


def changed_processes(folder: Path, world: World) -> str:
    """What a user should know of a state that other processes have saved; empty if they were as many."""
    saved_by = len(list(folder.glob(RANDOM.format(rank="*"))))
    if saved_by == world.size:
        return ""
    state = f"a state that {saved_by} processes have saved" if saved_by > 1 else "a state that one process has saved"
    if saved_by == 0:
        state = "a state without the random numbers of its processes"
    resumed_by = f"{world.size} processes" if world.size > 1 else "one process"
    return f"parallelism: {resumed_by} resumed from {state}: dropout draws other numbers from there on"


def _packed(state: RandomState) -> bytes:
    packed: bytes = safetensors.torch.save(state.tensors, {OTHERS: json.dumps(state.others)})
    return packed


def _unpacked(path: Path) -> RandomState:
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return RandomState(tensors, json.loads(file.metadata()[OTHERS]))
