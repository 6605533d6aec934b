"""The task types, found by file: each module of this package defines one subclass of Task and names it TASK."""

from __future__ import annotations

import functools
import importlib
import operator
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from distillchain_api.metrics import Metric
from distillchain_api.task import Task


def task_types() -> dict[str, type[Task]]:
    """All task types by their name in `spec.task.type`, in alphabetical order."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    found: list[type[Task]] = [module.TASK for module in modules]
    return {name_of(task): task for task in sorted(found, key=name_of)}


def name_of(task: type[Task]) -> str:
    """The value of `spec.task.type` that selects this task type."""
    (name,) = task.model_fields["type"].annotation.__args__  # type: ignore[union-attr]  # a Literal with one value
    return str(name)


def metrics_of(task: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of the task of a recipe; none if this release does not know its type."""
    known = task_types().get(str(task.get("type")))
    return known.metrics if known else ()


def _tagged_union(types: list[type[Task]]) -> Any:
    """One type that parses to the task type that `type` names. Pydantic accepts no union of a single member."""
    if len(types) == 1:
        return types[0]
    return Annotated[functools.reduce(operator.or_, types), Field(discriminator="type")]


if TYPE_CHECKING:
    AnyTask = Task
else:
    AnyTask = _tagged_union(list(task_types().values()))
