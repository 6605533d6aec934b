"""Gates: what a model must reach before it may teach, and which of the fields fit the task's metric.

A bound of a metric that is better when higher is a minimum, of one that is better when lower a maximum. The task is not
part of a gate, so these rules belong to the spec: `gate_faults` checks them in Python, GATE_RULES in the API server.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, Fault, expected
from distillchain_api.metrics import Metric
from distillchain_api.task import Task
from distillchain_api.tasks import task_types

SHARE = "a share from 0 to 1"
SHARE_REMEDY = "for five points write 0.05, for ninety percent 0.9"

Bound = Annotated[float, Expect("a number")]
Drop = Annotated[float, Field(ge=0), Expect("a number from 0")]


class Gate(Document):
    """What a student must reach before it may teach; measured on validation."""

    min_metric: Bound | None = None
    """Minimum of `task.metric`, if that is better when higher, such as accuracy."""
    max_metric: Bound | None = None
    """Maximum of `task.metric`, if that is better when lower, such as an error."""
    max_drop: Drop | None = None
    """How much worse than its own teacher the student may be in `task.metric`: a difference of shares for a share
    such as accuracy, otherwise a difference in the unit of the metric."""


class TeacherGate(Document):
    """What the root teacher must reach before any student is trained; measured on validation."""

    min_metric: Bound | None = None
    """Minimum of `task.metric`, if that is better when higher."""
    max_metric: Bound | None = None
    """Maximum of `task.metric`, if that is better when lower."""

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.min_metric is None and self.max_metric is None:
            raise fault("", "expected minMetric, or maxMetric for a metric that is better when lower; add it")
        return self

    model_config = {
        "json_schema_extra": rules(
            cel("has(self.minMetric) || has(self.maxMetric)", "expected minMetric, or maxMetric; add it")
        )
    }


def gate_faults(task: Task, gates: Mapping[str, Gate | TeacherGate]) -> Iterator[Fault]:
    """What does not fit the task's metric.

    Args:
        gates: by their place, such as `stages[0].gate`.
    """
    metric = task.deciding_metric
    for place, gate in gates.items():
        # Whole numbers as the user probably wrote them: 5 and not 5.0.
        values = {name: int(it) if it.is_integer() else it for name, it in gate.to_document().items()}
        wrong, right = ("maxMetric", "minMetric") if metric.higher_is_better else ("minMetric", "maxMetric")
        if wrong in values:
            direction = "higher" if metric.higher_is_better else "lower"
            expectation = f"no {wrong}, because {metric.name} is better when {direction}"
            yield Fault(f"{place}.{wrong}", expected(values.pop(wrong), expectation, f"write {right}"))
        for name, value in values.items():
            bounds = Bounds.of(metric, name)
            if not bounds.lowest <= value <= bounds.highest:
                yield Fault(f"{place}.{name}", expected(value, bounds.expectation, bounds.remedy))


@dataclass(frozen=True)
class Bounds:
    """What a field of a gate may be."""

    lowest: float
    highest: float
    expectation: str
    remedy: str

    @classmethod
    def of(cls, metric: Metric, name: str) -> Bounds:
        """Those of the field `name` for a metric."""
        if metric.is_share:
            return cls(0.0, 1.0, SHARE, SHARE_REMEDY)
        # A value may drop from one end of the range to the other.
        lowest, highest = metric.range
        if name == "maxDrop":
            lowest, highest = 0.0, highest - lowest
        upto = "" if math.isinf(highest) else f" to {highest:g}"
        return cls(lowest, highest, f"a number from {lowest:g}{upto}", f"{metric.name} has no other values")

    @property
    def cel_outside(self) -> str:
        """CEL that finds values out of them, with VALUE for the field."""
        return f"VALUE < {self.lowest}" + ("" if math.isinf(self.highest) else f" || VALUE > {self.highest}")


def gate_rules(types: Mapping[str, type[Task]]) -> list[dict[str, str]]:
    """`gate_faults` as CEL rules of the spec."""
    higher = _metric_is(types, lambda metric: metric.higher_is_better)
    lower = _metric_is(types, lambda metric: not metric.higher_is_better)
    return [
        *_field_rules(lower, "minMetric", "", "only for a metric that is better when higher; write maxMetric"),
        *_field_rules(higher, "maxMetric", "", "only for a metric that is better when lower; write minMetric"),
        *(rule for name in ("minMetric", "maxMetric", "maxDrop") for rule in _range_rules(types, name)),
    ]


def _range_rules(types: Mapping[str, type[Task]], name: str) -> Iterator[dict[str, str]]:
    """Rules that refuse values of a field that no metric reaches. Metrics with one range share a rule."""
    metrics = [metric for kind in types.values() for metric in kind.metrics]
    # The other direction is refused whatever its value.
    relevant = [it for it in metrics if name == "maxDrop" or it.higher_is_better == (name == "minMetric")]
    groups: dict[tuple[float, float], Bounds] = {}
    for metric in relevant:
        found = Bounds.of(metric, name)
        # maxDrop from 0 is a rule of its own type.
        if name != "maxDrop" or math.isfinite(found.highest):
            groups.setdefault((found.lowest, found.highest), found)
    for place, bounds in groups.items():

        def within(metric: Metric, place: tuple[float, float] = place) -> bool:
            fits = Bounds.of(metric, name)
            return metric in relevant and (fits.lowest, fits.highest) == place

        remedy = f"; {bounds.remedy}" if bounds.remedy == SHARE_REMEDY else ""
        message = f"expected {bounds.expectation}{remedy}"
        yield from _field_rules(_metric_is(types, within), name, bounds.cel_outside, message)


def _field_rules(condition: str, name: str, bad: str, message: str) -> Iterator[dict[str, str]]:
    """Rules that refuse a field of gates where `condition` holds for the task.

    Args:
        condition: empty if it holds for no task; then there is no rule.
        bad: CEL that finds a bad value, with VALUE for the field; empty: every value is refused.
    """
    if not condition:
        return

    def refused(gate: str) -> str:
        value = f"{gate}.{name}"
        return f"has({gate}) && has({value})" + (f" && ({bad.replace('VALUE', value)})" if bad else "")

    yield cel(
        f"!({condition}) || !self.stages.exists(stage, {refused('stage.gate')})",
        f"stages[].gate.{name}: {message}",
        fieldPath=".stages",
    )
    if name in {field.alias for field in TeacherGate.model_fields.values()}:
        yield cel(
            # In this order, because most chains have no such gate, and all rules run at each write of a status.
            f"!({refused('self.teacher.gate')}) || !({condition})",
            f"teacher.gate.{name}: {message}",
            fieldPath=".teacher.gate",
        )


def _metric_is(types: Mapping[str, type[Task]], holds: Callable[[Metric], bool]) -> str:
    """CEL: whether the metric of `self.task`, or the default one of its type, is one of those; empty if none is."""
    named = {metric.name for kind in types.values() for metric in kind.metrics if holds(metric)}
    defaults = [name for name, kind in types.items() if holds(kind.metrics[0])]
    if not named:
        return ""
    return (
        f"has(self.task.metric) ? {_contains('self.task.metric', sorted(named))} "
        f": {_contains('self.task.type', defaults)}"
    )


def _contains(value: str, choices: Sequence[str]) -> str:
    # An empty list has no type in CEL.
    return f"{value} in [{', '.join(repr(choice) for choice in choices)}]" if choices else "false"


GATE_RULES = gate_rules(task_types())
"""For ChainSpec."""
