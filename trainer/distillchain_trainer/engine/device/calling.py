"""How the engine calls a model, in training and in passes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def call_model(model: Any, inputs: dict[str, Tensor]) -> Any:
    """What a model returns for a batch.

    Decoders would also keep a cache of keys and values, as their checkpoints say. Only generation reads it. Here it
    would be a copy of all of them, and each layer would be compiled by itself, because each writes to its own part.
    """
    # Some classes have the setting only by way of the model inside them.
    takes = _parameters(type(model).forward)
    inside = _parameters(type(getattr(model, "base_model", model)).forward)
    has_setting = "use_cache" in takes or ("kwargs" in takes and "use_cache" in inside)
    return model(**inputs, use_cache=False) if has_setting else model(**inputs)


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Within, the model computes without dropout. Afterwards it is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
