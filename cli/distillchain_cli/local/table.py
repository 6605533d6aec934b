"""The table at the end of a run: what each stage cost, and how much of the root teacher's metric it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_api.graph import Plan
from distillchain_api.metrics import Metric, retention
from distillchain_api.resource.status import ChainStatus, ExportStatus, MeasuredStatus, StageStatus
from distillchain_cli.output.columns import WIDTH, Column, count, duration, format_columns, rate, size
from distillchain_cli.output.evidence_table import evidence_lines
from distillchain_cli.output.phrases import NOT_NEEDED, export_lines, training_lines
from distillchain_operator.status.chain_status import metric_of, root_teacher

ROOT = "teacher"
NEW_WEIGHTS, REUSED = "*", "+"
LEGEND = {NEW_WEIGHTS: "started from new weights, not pretrained", REUSED: "already committed, not trained in this run"}


@dataclass(frozen=True)
class _Row:
    name: str
    model: MeasuredStatus | None
    elapsed_seconds: str | None = None


def results_table(plan: Plan, status: ChainStatus, *, width: int | None = WIDTH) -> str:
    """Root teacher first, then the students in order. Below: notes, and what marks and units mean.

    Warnings are only counted: the view has printed each when its stage ended.
    """
    metric = plan.chain.spec.task.deciding_metric
    root = root_teacher(plan, status.stages)
    columns = [
        Column("STAGE"),
        Column("PARAMETERS", right=True),
        Column("SIZE", right=True),
        Column(metric.name.upper(), right=True),
        Column("TEST", right=True),
        *([Column("RETAINED", right=True)] if metric.has_retention else []),
        Column("SMALLER", right=True),
        Column("EXAMPLES/S", right=True),
        Column("TIME", right=True),
    ]
    table = format_columns(columns, [_cells(row, root, metric) for row in _rows(plan, status, root)], width=width)
    notes = [*_passes(plan, status), *_notes(status, metric)]
    return "\n".join([table, "", *notes, *evidence_lines(status, metric.name, width=width)])


def _passes(plan: Plan, status: ChainStatus) -> list[str]:
    """What the passes of teachers took; they make no model."""
    found = [status.stage_named(stage.name) for stage in plan.stages if stage.is_pass]
    return [f"{entry.name}: {_pass(entry)}" for entry in found if entry is not None and entry.phase == "Committed"]


def _pass(entry: StageStatus) -> str:
    if entry.checkpoint is None:
        return NOT_NEEDED
    how = "already committed" if entry.reused else f"computed in {duration(entry.elapsed_seconds)}"
    return f"the teacher's answers, {how}"


def _rows(plan: Plan, status: ChainStatus, root: MeasuredStatus | None) -> list[_Row]:
    students = {stage.name for stage in plan.students}
    rows = [
        _Row(entry.name + _marks(entry), entry.model, entry.elapsed_seconds)
        for entry in status.stages
        if entry.name in students
    ]
    if plan.stages[0].work_order.teacher is None:
        return rows  # the first stage fine-tunes the root teacher, so it has a row already
    return [_Row(ROOT, root), *rows]


def _marks(entry: StageStatus) -> str:
    marks = (NEW_WEIGHTS if entry.pretrained is False else "") + (REUSED if entry.reused else "")
    return f" {marks}" if marks else ""


def _cells(row: _Row, root: MeasuredStatus | None, metric: Metric) -> list[str]:
    model = row.model
    if model is None:
        return [row.name, *[""] * (8 if metric.has_retention else 7)]
    return [
        row.name,
        count(model.parameters),
        size(model.size_bytes),
        metric_of(model, metric.name),
        metric_of(model, metric.name, split="test"),
        *([_retained(model, root, metric)] if metric.has_retention else []),
        f"{root.parameters / model.parameters:.1f}x" if root else "",
        rate(model.examples_per_second),
        duration(row.elapsed_seconds),
    ]


def _retained(model: MeasuredStatus, root: MeasuredStatus | None, metric: Metric) -> str:
    # A teacher at 0 has nothing to retain, and the quotient does not exist.
    student, teacher = metric_of(model, metric.name), metric_of(root, metric.name)
    kept = retention(float(student), float(teacher), metric) if student and teacher else None
    return "" if kept is None else f"{100 * kept:.1f}%"


def _notes(status: ChainStatus, metric: Metric) -> list[str]:
    # Only the marks that occur are explained.
    used = "".join(_marks(entry) for entry in status.stages)
    notes = [f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in used]
    for entry in status.stages:
        if entry.phase == "Committed":
            notes += [f"{entry.name} {entry.message}"] if entry.message else []
            notes += [*training_lines(entry), *_counted(entry), *export_lines(entry)]
            notes += [_export_line(entry.name, export, metric) for export in entry.exports]
    name = metric.name
    direction = "" if metric.higher_is_better else ", lower is better"
    retained = f"; retained: share of the teacher's {name} on validation" if metric.has_retention else ""
    return [*notes, f"{name}: on validation{direction}; test: {name} on test{retained}"]


def _export_line(stage: str, export: ExportStatus, metric: Metric) -> str:
    speeds = f"{rate(export.examples_per_second)} examples/s (PyTorch {rate(export.pytorch_examples_per_second)})"
    return f"{stage}: {export.format}: {size(export.size_bytes)}, {metric.name} {export.metric}, {speeds}: {export.uri}"


def _counted(entry: StageStatus) -> list[str]:
    found = len(entry.warnings)
    return [f"{entry.name}: {found} {'warning' if found == 1 else 'warnings'}, printed on stderr"] if found else []
