"""The one rule of gates: whether a measured model may teach. Operator, trainer and command line share it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_api.metrics import format_share
from distillchain_api.wire.work_order import TeacherRef, WorkOrder

ROUNDING = 1e-9  # 0.91 - 0.86 is 0.05000000000000004


@dataclass(frozen=True)
class Miss:
    """A gate that a model does not meet.

    Attributes:
        field: of the spec, such as `spec.stages[0].gate.maxDrop`.
        value: what was measured: the metric, or the drop from the teacher.
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
        slack: how far a value may be off; negative where values are rounded and doubt must count as a miss.
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
    if gate is None or _reaches(teacher, gate.min_metric, slack):
        return None
    return Miss("spec.teacher.gate.minMetric", teacher or 0.0, gate.min_metric, of_teacher=True)


def missed_student_gate(
    order: WorkOrder, student: float | None, teacher: float | None, *, slack: float = ROUNDING
) -> Miss | None:
    """The gate of the stage itself."""
    gate = order.gate
    if gate.min_metric is not None and not _reaches(student, gate.min_metric, slack):
        return Miss(f"{order.field}.gate.minMetric", student or 0.0, gate.min_metric)
    # Stage zero has no teacher to drop from.
    if gate.max_drop is None or order.teacher is None:
        return None
    # What was not measured counts as the worst case: a perfect teacher and a student that gets nothing right.
    drop = (teacher if teacher is not None else 1.0) - (student or 0.0)
    # Both values may be off, so the slack counts twice when it is an error bound.
    if drop > gate.max_drop + (slack if slack >= 0 else 2 * slack):
        return Miss(f"{order.field}.gate.maxDrop", drop, gate.max_drop)
    return None


def _reaches(value: float | None, minimum: float, slack: float) -> bool:
    """A measured value always reaches a minimum of 0, also one that rounding might put below it."""
    return value is not None and (value >= minimum - slack or minimum == 0)


def teacher_sentence(miss: Miss, order: WorkOrder, *, uri: str) -> str:
    """Why the root teacher may not teach, and what to do."""
    assert order.teacher is not None
    return (
        f"teacher {uri}: {order.task.metric} {format_share(miss.value, miss.bound)} is below {miss.field} "
        f"{format_share(miss.bound)}; {teacher_remedy(order.teacher)} or lower the gate"
    )


def student_sentence(miss: Miss, order: WorkOrder, student: float, teacher: float | None, *, kept: str) -> str:
    """Why a student may not teach, what to do, and (`kept`) where the trained student is."""
    metric = order.task.metric
    if miss.field.endswith("minMetric"):
        return (
            f"stage {order.stage}: {metric} {format_share(miss.value, miss.bound)} is below {miss.field} "
            f"{format_share(miss.bound)}; train it better or lower the gate: {kept}"
        )
    return (
        f"stage {order.stage}: {metric} {format_share(student)} is {format_share(miss.value, miss.bound)} below its "
        f"teacher's {format_share(teacher or 0.0)}, more than {miss.field} {format_share(miss.bound)}; step down less, "
        f"train it better or raise the gate: {kept}"
    )


def teacher_remedy(teacher: TeacherRef) -> str:
    """How a teacher is improved."""
    if teacher.digest is None:
        return "fine-tune it (spec.teacher.fineTune)"
    return f"train stage {teacher.name} better (more epochs, another learningRate, a smaller step down)"
