"""The table at the end of a run: what each step down cost and what is left of the root teacher's metric."""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus, MeasuredStatus, StageStatus
from distillchain_cli.columns import WIDTH, Column, count, duration, format_columns, rate, size
from distillchain_operator.status import metric_of, root_teacher

ROOT = "teacher"
NEW_WEIGHTS, REUSED = "*", "+"
LEGEND = {NEW_WEIGHTS: "started from new weights, not pretrained", REUSED: "found committed, not trained in this run"}


@dataclass(frozen=True)
class _Row:
    name: str
    model: MeasuredStatus | None
    elapsed_seconds: str | None = None


def results_table(plan: Plan, status: ChainStatus, *, width: int | None = WIDTH) -> str:
    """Root teacher first, then the students from large to small; notes below explain marks and units."""
    metric = plan.chain.spec.task.metric
    root = root_teacher(plan, status.stages)
    columns = [
        Column("STAGE"),
        Column("PARAMETERS", right=True),
        Column("SIZE", right=True),
        Column(metric.upper(), right=True),
        Column("TEST", right=True),
        Column("RETAINED", right=True),
        Column("SMALLER", right=True),
        Column("EXAMPLES/S", right=True),
        Column("TIME", right=True),
    ]
    table = format_columns(columns, [_cells(row, root, metric) for row in _rows(plan, status, root)], width=width)
    return "\n".join([table, "", *_notes(status, metric)])


def _rows(plan: Plan, status: ChainStatus, root: MeasuredStatus | None) -> list[_Row]:
    rows = [_Row(entry.name + _marks(entry), entry.model, entry.elapsed_seconds) for entry in status.stages]
    if plan.stages[0].work_order.teacher is None:
        return rows  # stage zero is the root teacher
    return [_Row(ROOT, root), *rows]


def _marks(entry: StageStatus) -> str:
    marks = (NEW_WEIGHTS if entry.pretrained is False else "") + (REUSED if entry.reused else "")
    return f" {marks}" if marks else ""


def _cells(row: _Row, root: MeasuredStatus | None, metric: str) -> list[str]:
    model = row.model
    if model is None:
        return [row.name, *[""] * 8]
    return [
        row.name,
        count(model.parameters),
        size(model.size_bytes),
        metric_of(model, metric),
        metric_of(model, metric, split="test"),
        _retained(model, root, metric),
        f"{root.parameters / model.parameters:.1f}x" if root else "",
        rate(model.examples_per_second),
        duration(row.elapsed_seconds),
    ]


def _retained(model: MeasuredStatus, root: MeasuredStatus | None, metric: str) -> str:
    theirs = float(metric_of(root, metric) or 0)
    return f"{100 * float(metric_of(model, metric)) / theirs:.1f}%" if theirs else ""


def _notes(status: ChainStatus, metric: str) -> list[str]:
    used = "".join(_marks(entry) for entry in status.stages)
    notes = [f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in used]
    notes += [
        f"{entry.name} {entry.message}" for entry in status.stages if entry.phase == "Committed" and entry.message
    ]
    return [
        *notes,
        f"{metric} on validation and test; retained of the teacher's on validation; examples/s of the model alone",
    ]
