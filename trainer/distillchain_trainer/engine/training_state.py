"""The state of a training on disk: weights, moments and random numbers as safetensors, nothing pickled.

A training that is resumed from it makes the same steps, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from distillchain_trainer.engine.optimizer import moments_of, set_moments

WEIGHTS = "model.safetensors"
MOMENTS = "optimizer.safetensors"
RANDOM = "random.safetensors"
RANDOM_PYTHON = "random.json"


def set_seed(seed: int) -> None:
    """Seeds every generator that models draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # all GPUs too


def save_weights(model: Any, folder: Path) -> None:
    """The weights alone, for `load_weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    # save_model and not save_file, which refuses tensors that share memory, such as tied embeddings.
    safetensors.torch.save_model(model, str(folder / WEIGHTS))


def load_weights(model: Any, folder: Path) -> None:
    """Loads all weights. Raises: RuntimeError when one is missing or left over."""
    safetensors.torch.load_model(model, folder / WEIGHTS)


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


def save_state(folder: Path, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Everything that the next step depends on, except the step's number."""
    save_weights(model, folder)
    safetensors.torch.save_file(moments_of(optimizer), folder / MOMENTS)
    state = random_state()
    safetensors.torch.save_file(state.tensors, folder / RANDOM)
    (folder / RANDOM_PYTHON).write_text(json.dumps(state.others), encoding="utf-8")


def load_state(folder: Path, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Restores what `save_state` wrote."""
    load_weights(model, folder)
    device = next(model.parameters()).device
    set_moments(optimizer, safetensors.torch.load_file(folder / MOMENTS, device=str(device)))
    # Random numbers last, so that nothing that is loaded before can draw from them.
    others = json.loads((folder / RANDOM_PYTHON).read_text(encoding="utf-8"))
    set_random_state(RandomState(safetensors.torch.load_file(folder / RANDOM), others))
