"""The resources of the container `trainer`, checked as the API server checks those of a pod."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.faults import Fault, error_of
from distillchain_api.resource.quantities import Quantity, amount_faults, fraction_problem, part_problem

Amounts = Annotated[dict[str, Quantity], Field(max_length=64)]


class ResourceClaim(Document):
    """A claim of the pod (`pod.spec.resourceClaims`) that the container uses."""

    name: str
    """Name of the claim in the pod."""
    request: str | None = None
    """One request of the claim; empty: all of them."""


class Resources(Document):
    """What the container `trainer` may use, as in a Pod."""

    limits: Amounts | None = None
    """The most that the container may use, such as `nvidia.com/gpu: 1` or `memory: 16Gi`."""
    requests: Amounts | None = None
    """What a node must have free for it; empty: the limits."""
    claims: list[ResourceClaim] | None = None
    """Devices by dynamic resource allocation."""

    @model_validator(mode="after")
    def _amounts_go_together(self) -> Self:
        limits, requests = self.limits or {}, self.requests or {}
        found = [*_fractions("limits", limits), *_fractions("requests", requests)]
        if found := found or list(amount_faults(limits, requests, complete=True)):
            raise error_of(found)
        return self


def _fractions(key: str, amounts: Mapping[str, Any]) -> Iterator[Fault]:
    for name, amount in amounts.items():
        if isinstance(amount, float):
            # Quoted, a part of a device would be refused again.
            yield Fault(f"{key}.{name}", part_problem(name, amount) or fraction_problem(amount))
