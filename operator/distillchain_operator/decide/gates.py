"""Whether a committed stage still meets the gates of the spec, judged by the metrics in status. Pure.

Gates are not part of a stage's digest, so an edit may tighten one after the commit. Metrics in status are rounded. A
value within the rounding counts as a miss: the stage runs again, and its trainer knows all decimals.
"""

from __future__ import annotations

from distillchain_api.gates import missed_gate
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import MeasuredStatus, StageStatus

# Half of the last digit that `format_for_status` writes: of four decimals, and of six significant digits.
SHARE_ROUNDING = 0.00005
RELATIVE_ROUNDING = 5e-6


def surely_meets_gates(stage: PlannedStage, entry: StageStatus) -> bool:
    """Whether the recorded metrics meet every gate of the stage, the root teacher's included, beyond rounding."""
    order = stage.work_order
    student, teacher = (_metric(model, order.task.metric) for model in (entry.model, entry.teacher))
    slack = SHARE_ROUNDING if order.task.deciding_metric.is_share else RELATIVE_ROUNDING
    return missed_gate(order, student, teacher, slack=-slack) is None


def has_exports(stage: PlannedStage, entry: StageStatus) -> bool:
    """Whether everything is exported that the spec asks for."""
    return {*stage.work_order.export.formats} <= {export.format for export in entry.exports}


def _metric(model: MeasuredStatus | None, metric: str) -> float | None:
    value = model.metrics.validation.get(metric) if model else None
    return float(value) if value else None
