"""Whether a committed stage still meets the gates of the spec, judged by the metrics that status holds. Pure.

Gates are no part of a stage's digest, so an edit may tighten one after the commit. Status has four decimals and the
trainer all of them: what lies within the rounding counts as not met, and the trainer, started again, decides.
"""

from __future__ import annotations

from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import MeasuredStatus, StageStatus

ROUNDING = 0.00005  # half of the last of four decimals


def surely_meets_gates(stage: PlannedStage, entry: StageStatus) -> bool:
    """Whether the recorded metrics meet every gate of the stage, its root teacher's included, beyond rounding."""
    order = stage.work_order
    metric = order.task.metric
    root_gate = order.teacher.gate if order.teacher else None
    if root_gate is not None and not _at_least(_metric(entry.teacher, metric), root_gate.min_metric):
        return False
    if order.gate.min_metric is not None and not _at_least(_metric(entry.model, metric), order.gate.min_metric):
        return False
    if order.gate.max_drop is not None:
        student, teacher = _metric(entry.model, metric), _metric(entry.teacher, metric)
        if student is None or teacher is None or teacher - student > order.gate.max_drop - 2 * ROUNDING:
            return False
    return True


def _at_least(value: float | None, least: float) -> bool:
    return value is not None and (value - ROUNDING >= least or least == 0)


def _metric(model: MeasuredStatus | None, metric: str) -> float | None:
    if model is None:
        return None
    split = model.metrics.validation
    return float(split.accuracy if metric == "accuracy" else split.macro_f1)
