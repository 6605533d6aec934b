"""How the engine asks a model, in training and in passes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


def answer_of(model: Any, inputs: dict[str, Tensor]) -> Any:
    """What a model returns for a batch.

    Decoders would also keep a cache of keys and values, as their checkpoints say. Only generation reads it. Here it
    would be a copy of all of them, and each layer would be compiled by itself, because each writes to its own part.
    """
    return model(**inputs, **_settings_of(type(model).forward))


@functools.cache
def _settings_of(forward: Callable[..., Any]) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(forward).parameters else {}
