"""Whether a new model fits into memory at all. Without this check the kernel kills the process without a message."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distillchain_trainer.engine.device.precision import best_device
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.models.loading import seeded

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # v2, v1
WEIGHT_BYTES = 4  # float32
TRAINED_BYTES = 4 * WEIGHT_BYTES  # the weight, its gradient and the two moments of AdamW


@dataclass(frozen=True)
class Processes:
    """The processes that train a model.

    Attributes:
        here: those in this machine or container.
        of: all of the stage.
        sharded: each holds a part of the model. The first one also holds all weights.
        has_main: the first one is here.
    """

    here: int = 1
    of: int = 1
    sharded: bool = False
    has_main: bool = True

    @classmethod
    def in_world(cls, world: World, *, sharded: bool) -> Processes:
        """Those of a stage."""
        # The launcher sets the variable for the ranks that it starts.
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(here, world.size, sharded, has_main=world.rank == world.local_rank)

    def needed_bytes(self, parameters: int, *, on_cpu: bool) -> int:
        """Memory of the host for a model of so many parameters; with a GPU, gradients and moments are there."""
        if not self.sharded:
            return self.here * parameters * (TRAINED_BYTES if on_cpu else WEIGHT_BYTES)
        parts = parameters * TRAINED_BYTES * self.here // self.of if on_cpu else 0
        return parts + self.has_main * parameters * WEIGHT_BYTES

    def describe(self, *, on_cpu: bool) -> str:
        """What `needed_bytes` has counted, for a message."""
        if not self.sharded:
            what = "weights, gradients and moments of AdamW" if on_cpu else "weights"
            return f"{what} in float32" + (f", in each of {self.here} processes" if self.here > 1 else "")
        parts = f"{self.here} of {self.of} parts of weights, gradients and moments of AdamW" if on_cpu else ""
        return " and ".join(filter(None, [parts, "all weights once" * self.has_main])) + ", in float32"


def check_memory(build: Callable[[], Any], *, field: str, processes: Processes) -> None:
    """Builds a model without memory for its weights, to see how much it needs.

    Args:
        build: returns the model.
    Raises: CheckpointInvalid if the weights, on a CPU also what their training needs, exceed the memory.
    """
    limit, on_cpu = memory_limit_bytes(), best_device().type == "cpu"
    try:
        with torch.device("meta"), seeded(0):
            parameters = sum(parameter.numel() for parameter in build().parameters())
    except Exception:  # a model type that cannot be built in this way is built without the check
        return
    needed = processes.needed_bytes(parameters, on_cpu=on_cpu)
    if limit is not None and needed > limit:
        fewer = ", lower processesPerNode" if processes.here > 1 and not processes.sharded else ""
        raise CheckpointInvalid(
            f"{field}: it has {parameters:,} parameters, which need {_gib(needed)} "
            f"({processes.describe(on_cpu=on_cpu)}), and the memory limit is {_gib(limit)}; make the architecture "
            f"smaller{fewer} or raise the memory limit of the pod"
        )


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
