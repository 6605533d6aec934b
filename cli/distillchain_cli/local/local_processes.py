"""How many processes train a stage on this machine. The number changes no digest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from distillchain_api.graph import PlannedStage
from distillchain_api.resource.parallelism import ResolvedParallelism

DEVICES = Path("/dev")


def processes_here(stage: PlannedStage, *, gpus: int) -> ResolvedParallelism:
    """One node, with at most one process for each GPU of this machine if the stage asks for GPUs."""
    wanted = stage.work_order.parallelism
    count = min(wanted.processes_per_node, max(gpus, 1)) if stage.gpus else wanted.processes_per_node
    return ResolvedParallelism(processes_per_node=count, sharding=wanted.sharding if count > 1 else "None")


def count_gpus(environment: Mapping[str, str] = os.environ, devices: Path = DEVICES) -> int:
    """NVIDIA GPUs that a trainer can use here. No library is asked: importing torch would take seconds."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA ignores an invalid index and everything after it; -1 is the usual one.
        return len(names[: names.index("-1")] if "-1" in names else list(filter(None, names)))
    return sum(path.name.removeprefix("nvidia").isdecimal() for path in devices.glob("nvidia*"))
