"""The state of a training on disk: weights, moments and random numbers as safetensors, nothing pickled.

A training that is resumed from it makes the same steps, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import json
import random
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
    safetensors.torch.save_model(model, str(folder / WEIGHTS))


def load_weights(model: Any, folder: Path) -> None:
    """Takes over all weights. Raises: RuntimeError when one is missing or left over."""
    safetensors.torch.load_model(model, folder / WEIGHTS)


def save_state(folder: Path, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Everything that the next step depends on, except the step's number."""
    save_weights(model, folder)
    safetensors.torch.save_file(moments_of(optimizer), folder / MOMENTS)
    safetensors.torch.save_file(_random_tensors(), folder / RANDOM)
    (folder / RANDOM_PYTHON).write_text(json.dumps(_random_python()), encoding="utf-8")


def load_state(folder: Path, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Takes over what `save_state` wrote."""
    load_weights(model, folder)
    device = next(model.parameters()).device
    set_moments(optimizer, safetensors.torch.load_file(folder / MOMENTS, device=str(device)))
    _set_random(
        safetensors.torch.load_file(folder / RANDOM), json.loads((folder / RANDOM_PYTHON).read_text(encoding="utf-8"))
    )


def _random_tensors() -> dict[str, torch.Tensor]:
    found = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _random_python() -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, gauss]}


def _set_random(tensors: dict[str, torch.Tensor], others: dict[str, Any]) -> None:
    version, internal, gauss = others["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(others["numpy"]))
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available() and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"])
