"""A volume for fetched models and data, which stages share. It decides no result, so it is in no digest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ValidationInfo, WithJsonSchema

from distillchain_api.base import Document
from distillchain_api.cel import fault
from distillchain_api.faults import Expect, Fault, error_of, got
from distillchain_api.resource.pod import FROM_CLUSTER, pod_faults, unknown_fields
from distillchain_api.resource.quantities import EXPECTED, Quantity, fraction_problem, quantity_problem, quantity_value

ONE_SOURCE = "one source of a volume, such as persistentVolumeClaim, hostPath or emptyDir"
_PREFIX = "spec.volumes[0]."


def _checked(source: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Checks a source of a volume as that of a pod is checked."""
    if "name" in source:
        raise fault("name", "unknown field; the operator names the volume: remove it")
    if len(source) != 1:
        raise fault("", f"got {', '.join(source) or 'none'}, expected {ONE_SOURCE}")
    pod = {"spec": {"volumes": [{"name": "cache", **source}]}}
    from_cluster = bool(info.context and info.context.get(FROM_CLUSTER))
    unknown = [] if from_cluster else map(_without_other_places, unknown_fields(pod, field="pod"))
    if found := [*unknown, *pod_faults(pod)]:
        raise error_of([Fault(item.field.removeprefix(_PREFIX), item.problem) for item in found])
    return source


def _without_other_places(unknown: Fault) -> Fault:
    """A field that is right elsewhere in a pod was not meant here."""
    if "did you mean pod." not in unknown.problem:
        return unknown
    return Fault(unknown.field, "unknown field; no volume of a pod has it; remove it")


def _is_size(size: Any) -> Any:
    value = quantity_value(size)
    if problem := quantity_problem(size):
        raise fault("", problem)
    if value is None or value < 1:
        raise fault("", f"{got(size)}, expected a size such as 100Gi")
    if isinstance(size, float):
        raise fault("", fraction_problem(size))
    return size


VolumeSource = Annotated[
    dict[str, Any],
    AfterValidator(_checked),
    Expect(f"a mapping with {ONE_SOURCE}"),
    WithJsonSchema(
        {"type": "object", "minProperties": 1, "maxProperties": 1, "x-kubernetes-preserve-unknown-fields": True}
    ),
]
Size = Annotated[Quantity, AfterValidator(_is_size), Expect(EXPECTED)]


class Cache(Document):
    """Fetched models and data, kept on a volume for other stages and pods. Each file is verified before it is used."""

    volume: VolumeSource
    """Source of the volume, as in a pod: `persistentVolumeClaim: {claimName: models}`, or a hostPath of each node."""
    max_size: Size | None = None
    """Maximum size; the files that have not been used for the longest time are deleted. Empty: no limit."""

    @property
    def max_bytes(self) -> int | None:
        """`max_size` as a number; None: no limit."""
        value = None if self.max_size is None else quantity_value(self.max_size)
        return None if value is None else int(value)
