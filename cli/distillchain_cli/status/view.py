"""The status of chains as tables: all chains with a line each, or one chain with a line for each stage. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_cli.api_server.chains import full_name, metric_name, seconds_since, status_of, true_condition
from distillchain_cli.errors import RunFailed
from distillchain_cli.output.columns import WIDTH, Column, age, count, duration, format_columns, rate, size
from distillchain_cli.output.evidence_table import evidence_lines
from distillchain_cli.output.phrases import training_lines, warning_lines
from distillchain_operator.status.chain_status import metric_of

DIGEST_CHARS = 12


def list_table(chains: Sequence[dict[str, Any]], *, now: datetime, everywhere: bool, wide: bool = False) -> str:
    """One line for each chain.

    Args:
        everywhere: add the namespace.
    """
    columns = [
        Column("NAME", is_name=True),
        Column("PHASE"),
        Column("STAGE"),
        Column("METRIC", right=True),
        Column("AGE", right=True),
    ]
    columns = [Column("NAMESPACE", is_name=True), *columns] if everywhere else columns
    more = [Column("PARAMETERS", right=True), Column("RETAINED", right=True), Column("CHECKPOINT")] if wide else []
    rows = []
    for chain in chains:
        namespace = [chain["metadata"]["namespace"]] if everywhere else []
        rows.append([*namespace, *_list_cells(chain, now=now, wide=wide)])
    return format_columns([*columns, *more, Column("MESSAGE")], rows, width=None if wide else WIDTH)


def _list_cells(chain: dict[str, Any], *, now: datetime, wide: bool) -> list[str]:
    metadata = chain["metadata"]
    since = age(seconds_since(metadata["creationTimestamp"], now))
    try:
        status = status_of(chain)
    except RunFailed as error:  # one chain of another release must not hide the others
        phase = str(chain["status"].get("phase") or "")
        return [metadata["name"], phase, "", "", since, *([""] * 3 if wide else []), str(error)]
    row = [metadata["name"], status.phase, status.stage, status.metric or "", since]
    if wide:
        result = status.result
        row += [count(result.parameters), result.retention or "", result.checkpoint] if result else [""] * 3
    # Messages of the API server may have line breaks, which would break the table.
    return [*row, " ".join((status.message or "").split())]


def status_text(chain: dict[str, Any], status: ChainStatus, *, wide: bool = False) -> str:
    """A summary of the chain, a line for each stage and control, notes and warnings of them, and the evidence."""
    lines = [headline(chain, status)]
    if status.message:
        lines.append(status.message)
    if status.entries:
        lines += ["", _stages_table(status.entries, metric_name(chain), wide=wide)]
    if notes := [line for entry in status.entries for line in (*training_lines(entry), *warning_lines(entry))]:
        lines += ["", *notes]
    lines += evidence_lines(status, metric_name(chain), width=None if wide else WIDTH)
    return "\n".join(lines)


def headline(chain: dict[str, Any], status: ChainStatus) -> str:
    """`ml/sst2-femto: Running, 1/3 stages committed`."""
    committed = f"{status.stage} stages committed" if status.stage else "the operator has not seen it yet"
    return f"{full_name(chain)}: {status.phase}, {committed}"


def failure_of(status: ChainStatus) -> FailureClass | None:
    """Why a stalled chain needs the user; None if it is not stalled."""
    if true_condition(status, "Stalled") is None:
        return None
    return next((entry.failure_class for entry in status.stages if entry.failure_class), None)


def _stages_table(stages: Sequence[StageStatus], metric: str, *, wide: bool) -> str:
    columns = [
        Column("STAGE", is_name=True),
        Column("PHASE"),
        Column("ATTEMPT", right=True),
        Column("PARAMETERS", right=True),
        Column(metric.upper(), right=True),
        Column("TIME", right=True),
    ]
    if wide:
        columns += [
            Column("TEST", right=True),
            Column("SIZE", right=True),
            Column("EXAMPLES/S", right=True),
            Column("DIGEST"),
            Column("JOB"),
            Column("CHECKPOINT"),
        ]
    rows = [_cells(entry, metric, wide=wide) for entry in stages]
    return format_columns([*columns, Column("MESSAGE")], rows, width=None if wide else WIDTH)


def _cells(entry: StageStatus, metric: str, *, wide: bool) -> list[str]:
    model = entry.model
    seen = entry.progress if entry.phase in ("Running", "Failed") else None
    progress = f"{seen.phase} {seen.step}/{seen.of}" if seen else ""
    cells = [
        entry.name,
        entry.phase,
        str(entry.attempt or ""),
        count(model.parameters) if model else "",
        metric_of(model, metric),
        duration(entry.elapsed_seconds) if entry.elapsed_seconds else "",
    ]
    if wide:
        cells += [
            metric_of(model, metric, split="test"),
            size(model.size_bytes) if model else "",
            rate(entry.examples_per_second),
            entry.digest[:DIGEST_CHARS],
            entry.job or "",
            entry.checkpoint or "",
        ]
    return [*cells, " ".join(filter(None, (progress, entry.message)))]
