"""Models with new weights, in place of those of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distillchain_trainer.errors import CheckpointInvalid, first_line, translate_unforeseen
from distillchain_trainer.models.loading import seeded
from distillchain_trainer.models.memory import Processes, check_memory


def build_new(build: Callable[[], Any], *, kind: str, seed: int, field: str, processes: Processes) -> Any:
    """The model that `build` returns, its weights drawn from the seed.

    Args:
        kind: its model type, for messages.
        field: the architecture in the spec.
    Raises: CheckpointInvalid if it does not fit into memory or cannot be built.
    """
    check_memory(build, field=field, processes=processes)
    try:
        with seeded(seed):
            return build()
    except Exception as error:  # a field of the wrong type or size, or a package that is not installed
        raise translate_unforeseen(error) or CheckpointInvalid(
            f"{field}: {kind} with this config cannot be built: {first_line(error)}"
        ) from error
