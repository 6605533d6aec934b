"""How many processes train one stage together, and where they run. It decides no result, so it is in no digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected
from distillchain_api.resource.quantities import quantity_value

COUNT = "a whole number from 1 to 256"
Count = Annotated[int, Field(ge=1, le=256), Expect(COUNT, "1 is a single pod")]
ProcessCount = Annotated[
    int, Field(ge=1, le=256), Expect(COUNT, "leave it out for one process for each GPU of the container")
]
Sharding = Literal["None", "Full"]

NEEDS_SEVERAL = "sharding divides a model among several processes: set nodes or processesPerNode"


class Parallelism(Document):
    """The processes that train a stage together. Each uses one GPU, if there is one."""

    nodes: Count = 1
    """Pods of the stage. They all start before any of them trains."""
    processes_per_node: ProcessCount | None = None
    """Processes of each pod; empty: the GPUs in the resources of the container `trainer`, else 1."""
    sharding: Sharding = "None"
    """None: each process holds the whole student. Full: weights, gradients and optimizer state are divided (FSDP2)."""

    @model_validator(mode="after")
    def _sharding_needs_several_processes(self) -> Self:
        # One process by the GPUs of a container is found later, with the plan (plan_check.py).
        if self.sharding == "Full" and self.nodes * (self.processes_per_node or 2) == 1:
            raise fault("sharding", expected("Full", "None with one process", NEEDS_SEVERAL))
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.sharding != 'Full' || self.nodes > 1 || !has(self.processesPerNode) || self.processesPerNode > 1",
                f"sharding: expected None with one process; {NEEDS_SEVERAL}",
                fieldPath=".sharding",
            )
        )
    }


class ResolvedParallelism(Document):
    """The processes of a stage once the GPUs of its container are known."""

    nodes: Count = 1
    """Pods of the stage."""
    processes_per_node: ProcessCount = 1
    """Processes of each pod."""
    sharding: Sharding = "None"

    @property
    def processes(self) -> int:
        """All processes of the stage."""
        return self.nodes * self.processes_per_node


def resolve(parallelism: Parallelism, *, gpus: int) -> ResolvedParallelism:
    """The processes of a stage whose container asks for so many GPUs."""
    return ResolvedParallelism(
        nodes=parallelism.nodes,
        processes_per_node=parallelism.processes_per_node or min(max(gpus, 1), 256),
        sharding=parallelism.sharding,
    )


def without_devices(resources: Mapping[str, Any]) -> dict[str, Any]:
    """The resources of a container without GPUs, parts of GPUs, TPUs, other devices and claims."""
    # The names of devices depend on their vendors (nvidia.com/mig-1g.10gb, gpu.intel.com/i915, google.com/tpu).
    return {
        key: {name: amount for name, amount in (resources[key] or {}).items() if _is_of_nodes(name)}
        for key in ("limits", "requests")
        if key in resources
    }


def has_devices(resources: Mapping[str, Any]) -> bool:
    """Whether a container asks for a GPU, a part of one, another device or a claim."""
    limits = resources.get("limits") or {}
    return bool(resources.get("claims")) or any(
        not _is_of_nodes(name) and quantity_value(amount) for name, amount in limits.items()
    )


def cuda_devices_of(resources: Mapping[str, Any]) -> int:
    """GPUs, parts of them and shares of them that torch must see in a container, such as nvidia.com/mig-1g.10gb."""
    limits = resources.get("limits") or {}
    names = [name for name in limits if _is_gpu(name) or name.startswith(("nvidia.com/gpu.", "nvidia.com/mig-"))]
    return sum(int(quantity_value(limits[name]) or 0) for name in names)


def _is_of_nodes(resource: str) -> bool:
    """Whether each node has the resource, without a device plugin."""
    return resource in ("cpu", "memory", "ephemeral-storage") or resource.startswith("hugepages-")


def gpus_of(resources: Mapping[str, Any]) -> int:
    """GPUs in the resources of a container: its limits named `<vendor>/gpu`, such as nvidia.com/gpu."""
    # Kubernetes accepts a device in `requests` only with the same amount in `limits`.
    limits = resources.get("limits") or {}
    amounts = (quantity_value(amount) for name, amount in limits.items() if _is_gpu(name))
    return sum(int(amount) for amount in amounts if amount)


def _is_gpu(resource: str) -> bool:
    return resource.partition("/")[2] == "gpu"
