"""The one rule of gates: whether a measured model may teach. Operator, trainer and command line share it. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distillchain_api.metrics import Metric, format_value
from distillchain_api.resource.gate import Gate, TeacherGate
from distillchain_api.wire.work_order import TeacherRef, WorkOrder

ROUNDING = 1e-9  # 0.91 - 0.86 is 0.05000000000000004


@dataclass(frozen=True)
class Miss:
    """A gate that a model does not meet.

    Attributes:
        field: of the spec, such as `spec.stages[0].gate.maxDrop`.
        value: what was measured: the metric, or by how much it is worse than the teacher's.
        bound: what the gate asks for.
        of_teacher: the root teacher missed it, not the stage's student.
    """

    field: str
    value: float
    bound: float
    of_teacher: bool = False


def missed_gate(
    order: WorkOrder, student: float | None, teacher: float | None, *, slack: float = ROUNDING
) -> Miss | None:
    """The first gate of a stage that its models miss; None when they meet all.

    Args:
        student, teacher: values of `task.metric` on validation. None: not measured, which misses every gate.
        slack: how far a value may be off; negative where values are rounded and doubt must count as a miss. Of a metric
            that is no share it is a share of the value.
    """
    # The teacher first, because a bad teacher explains a bad student.
    misses = (
        missed_teacher_gate(order, teacher, slack=slack),
        missed_student_gate(order, student, teacher, slack=slack),
    )
    return next((miss for miss in misses if miss), None)


def missed_teacher_gate(order: WorkOrder, teacher: float | None, *, slack: float = ROUNDING) -> Miss | None:
    """The gate of the root teacher, which its first student's stage measures."""
    gate = order.teacher.gate if order.teacher else None
    if gate is None:
        return None
    return _missed_bound(gate, order.task.deciding_metric, "spec.teacher.gate", teacher, slack, of_teacher=True)


def missed_student_gate(
    order: WorkOrder, student: float | None, teacher: float | None, *, slack: float = ROUNDING
) -> Miss | None:
    """The gate of the stage itself."""
    gate, metric = order.gate, order.task.deciding_metric
    miss = _missed_bound(gate, metric, f"{order.field}.gate", student, slack)
    # Stage zero has no teacher to drop from.
    if miss or gate.max_drop is None or order.teacher is None:
        return miss
    # What was not measured counts as the worst case: a perfect teacher and a student that gets nothing right.
    own, theirs = metric.worst if student is None else student, metric.best if teacher is None else teacher
    drop = metric.worse_by(own, theirs)
    tolerance = _tolerance(metric, slack, own, theirs)
    # Both values may be off, so the slack counts twice when it is an error bound.
    if drop > gate.max_drop + (tolerance if tolerance >= 0 else 2 * tolerance):
        return Miss(f"{order.field}.gate.maxDrop", drop, gate.max_drop)
    return None


def _missed_bound(
    gate: Gate | TeacherGate, metric: Metric, field: str, value: float | None, slack: float, *, of_teacher: bool = False
) -> Miss | None:
    """The minimum or maximum that a value misses."""
    # The spec refuses the bound that does not fit the metric.
    bound, name = (gate.min_metric, "minMetric") if metric.higher_is_better else (gate.max_metric, "maxMetric")
    if bound is None:
        return None
    measured = metric.worst if value is None else value
    # A measured value always reaches the worst bound there is, also one that rounding might put beyond it.
    if value is not None and (
        bound == metric.worst or metric.worse_by(value, bound) <= _tolerance(metric, slack, value, bound)
    ):
        return None
    return Miss(f"{field}.{name}", measured, bound, of_teacher=of_teacher)


def _tolerance(metric: Metric, slack: float, *values: float) -> float:
    """How far the values may be off, in the metric's unit."""
    if metric.is_share:
        return slack
    # Infinite for a value that was not measured: it must not be forgiven.
    return slack * max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def teacher_sentence(miss: Miss, order: WorkOrder, *, uri: str) -> str:
    """Why the root teacher may not teach, and what to do."""
    assert order.teacher is not None
    return f"teacher {uri}: {_beyond(miss, order.task.deciding_metric, teacher_remedy(order.teacher))}"


def student_sentence(miss: Miss, order: WorkOrder, student: float, teacher: float | None, *, kept: str) -> str:
    """Why a student may not teach, what to do, and (`kept`) where the trained student is."""
    metric = order.task.deciding_metric
    if not miss.field.endswith("maxDrop"):
        return f"stage {order.stage}: {_beyond(miss, metric, 'train it better')}: {kept}"
    direction = "below" if metric.higher_is_better else "above"
    theirs = format_value(metric.best if teacher is None else teacher, metric)
    return (
        f"stage {order.stage}: {metric.name} {format_value(student, metric)} is "
        f"{format_value(miss.value, metric, miss.bound)} {direction} its teacher's {theirs}, more than {miss.field} "
        f"{format_value(miss.bound, metric)}; step down less, train it better or raise the gate: {kept}"
    )


def _beyond(miss: Miss, metric: Metric, remedy: str) -> str:
    """`accuracy 0.61 is below spec.stages[0].gate.minMetric 0.79; train it better or lower the gate`."""
    where, change = ("below", "lower") if metric.higher_is_better else ("above", "raise")
    return (
        f"{metric.name} {format_value(miss.value, metric, miss.bound)} is {where} {miss.field} "
        f"{format_value(miss.bound, metric)}; {remedy} or {change} the gate"
    )


def teacher_remedy(teacher: TeacherRef) -> str:
    """How a teacher is improved."""
    if teacher.digest is None:
        return "fine-tune it (spec.teacher.fineTune)"
    return f"train stage {teacher.name} better (more epochs, another learningRate, a smaller step down)"
