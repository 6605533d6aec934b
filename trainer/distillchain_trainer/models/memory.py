"""Whether a new model fits into memory at all. Without this check the kernel kills the process without a message."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distillchain_trainer.engine.precision import best_device
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.loading import seeded

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # v2, v1
WEIGHT_BYTES = 4  # float32
TRAINED_BYTES = 4 * WEIGHT_BYTES  # the weight, its gradient and the two moments of AdamW


def check_memory(build: Callable[[], Any], *, field: str) -> None:
    """Builds a model without memory for its weights, to see how much it needs.

    Args:
        build: returns the model.
    Raises: CheckpointInvalid if the weights, on a CPU also what their training needs, exceed the memory. Each process
        of this machine or container builds the model.
    """
    limit, processes = memory_limit_bytes(), processes_here()
    try:
        with torch.device("meta"), seeded(0):
            parameters = sum(parameter.numel() for parameter in build().parameters())
    except Exception:  # a model type that cannot be built in this way is built without the check
        return
    # With a GPU, gradients and moments are there. Sharding may split them, so only the weights are counted.
    on_cpu = best_device().type == "cpu"
    needed = processes * parameters * (TRAINED_BYTES if on_cpu else WEIGHT_BYTES)
    if limit is not None and needed > limit:
        what = "weights, gradients and moments of AdamW" if on_cpu else "weights"
        each = f", in each of {processes} processes" if processes > 1 else ""
        fewer = ", lower processesPerNode" if processes > 1 else ""
        raise CheckpointInvalid(
            f"{field}: it has {parameters:,} parameters, which need {_gib(needed)} ({what} in float32{each}), and the "
            f"memory limit is {_gib(limit)}; make the architecture smaller{fewer} or raise the memory limit of the pod"
        )


def processes_here() -> int:
    """Processes of this stage in this container. The launcher sets the variable for the ranks that it starts."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def memory_limit_bytes(limits: tuple[Path, ...] = CGROUP_LIMITS) -> int | None:
    """The memory of this machine or container, whichever is smaller; None if it is unknown."""
    # macOS has no SC_PHYS_PAGES in some versions of Python.
    known = os.sysconf_names
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if "SC_PHYS_PAGES" in known else []
    for path in limits:
        try:
            # "max" (version 2) means no limit; version 1 writes a number larger than any memory.
            found += [int(text) for text in path.read_text().split() if text.isdecimal()]
        except OSError:
            continue
    return min(found, default=None)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"
