"""Rules that hold in both places: pydantic checks them in Python, the API server as CEL."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticCustomError


def fault(field: str, problem: str) -> PydanticCustomError:
    """The error a model validator raises for `field`, relative to its model; `problem` is the whole sentence."""
    return PydanticCustomError("fault", "{problem}", {"field": field, "problem": problem})


def cel(rule: str, message: str, **more: str) -> dict[str, str]:
    """One entry of x-kubernetes-validations."""
    return {"rule": rule, "message": message, **more}


def rules(*entries: dict[str, str]) -> dict[str, Any]:
    """The schema extension that holds CEL rules."""
    return {"x-kubernetes-validations": list(entries)}
