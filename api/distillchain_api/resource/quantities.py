"""Kubernetes quantities such as `2`, `500m` and `16Gi`, and which amounts of a resource a container may ask for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import WithJsonSchema

from distillchain_api.faults import Fault, expected
from distillchain_api.resource.metadata import key_problem

QUANTITY = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$"
"""Kubernetes' own pattern without negative amounts, which no resource may have."""

EXPECTED = "a quantity such as 1, 500m or 16Gi"

Quantity = Annotated[Any, WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": QUANTITY, "minimum": 0})]
"""A quantity as the API server's schema has it; `amount_faults` checks it with its neighbours."""

STANDARD_RESOURCES = ("cpu", "memory", "ephemeral-storage")
"""What a container may ask for by a name without a domain, beside hugepages-<size>."""

SHARED_GPU = "to share one, use MIG (a resource such as nvidia.com/mig-1g.10gb) or time-slicing, where 1 is a share"

_DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def quantity_value(quantity: object) -> Fraction | None:
    """The amount that a quantity stands for; None when it is not one."""
    # YAML reads `cpu: 2` as a number. By its text, because the float 0.1 is not exactly 100m. In Python True is an int.
    if isinstance(quantity, int | float) and not isinstance(quantity, bool):
        return Fraction(str(quantity)) if quantity >= 0 else None
    found = re.fullmatch(QUANTITY, quantity) if isinstance(quantity, str) else None
    if found is None:
        return None
    # Exact, so that 0.1 equals 100m when a request is compared with its limit. `1.` is a quantity too.
    number, suffix = Fraction(found[1].rstrip(".")), found[3] or ""
    if suffix in _BINARY:
        return number * Fraction(1024) ** _BINARY[suffix]
    # `E` alone is exa; with digits after it, it is an exponent of ten.
    return number * Fraction(10) ** (3 * _DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:]))


def quantity_problem(value: object) -> str | None:
    """Why a value of a document is no quantity; None when it is one."""
    return expected(value, EXPECTED) if quantity_value(value) is None else None


def fraction_problem(amount: float) -> str:
    """Why a number such as 0.5 is refused: the schema of a CRD takes text and whole numbers, unlike that of a pod."""
    text = str(amount)
    return expected(amount, EXPECTED, f'write "{text}"' if quantity_value(text) is not None else "")


def amount_faults(limits: Mapping[str, Any], requests: Mapping[str, Any], *, complete: bool) -> Iterator[Fault]:
    """What the API server would refuse in the resources of a container; fields are relative to them.

    Args:
        complete: nothing else is merged into these resources, so a limit that is missing here is missing in the pod.
    """
    faulty = set()
    for key, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            if problem := quantity_problem(amount) or _name_problem(name) or part_problem(name, amount):
                faulty.add(name)
                yield Fault(f"{key}.{name}", problem)
    for name, request in requests.items():
        problem = _request_problem(name, request, limits.get(name), complete=complete)
        if problem and name not in faulty:
            yield Fault(f"requests.{name}", problem)


def _name_problem(name: str) -> str | None:
    if "/" in name:
        return key_problem(name)
    if name in STANDARD_RESOURCES or name.startswith("hugepages-"):
        return None
    # `gpu` and `nvidia-gpu` resemble none of the three standard names.
    near = ["nvidia.com/gpu"] if "gpu" in name.lower() else difflib.get_close_matches(name, STANDARD_RESOURCES, n=1)
    remedy = (
        f"did you mean {near[0]}?" if near else "expected cpu, memory or a name with a domain such as nvidia.com/gpu"
    )
    return f"unknown resource; {remedy}"


def part_problem(name: str, amount: object) -> str | None:
    """Why an amount of a device is refused: the API server takes no parts of devices, such as 500m of a GPU."""
    value = quantity_value(amount)
    if not _is_extended(name) or value is None or value.denominator == 1:
        return None
    return expected(amount, f"a whole number of {name}", SHARED_GPU if name.endswith("/gpu") else "")


def _request_problem(name: str, request: object, limit: object, *, complete: bool) -> str | None:
    # Kubernetes does not overcommit devices and huge pages: their request must equal their limit.
    exact = _is_extended(name) or name.startswith("hugepages-")
    if limit is None:
        return f"got {request} without limits.{name}, which Kubernetes requires; add it" if exact and complete else None
    asked, allowed = quantity_value(request), quantity_value(limit)
    if asked is None or allowed is None:
        return None  # reported by itself
    if exact and asked != allowed:
        return expected(request, f"the same as limits.{name}, {limit}")
    return expected(request, f"at most limits.{name}, {limit}") if asked > allowed else None


def _is_extended(name: str) -> bool:
    """A device or another countable resource of a vendor, such as nvidia.com/gpu."""
    return "/" in name and not name.split("/")[0].endswith("kubernetes.io")
