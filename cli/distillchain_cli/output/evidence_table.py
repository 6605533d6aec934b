"""The verdict on a chain and its controls, as lines of text."""

from __future__ import annotations

from distillchain_api.resource.status import ChainStatus, ControlResult, EvidenceResult
from distillchain_cli.output.columns import WIDTH, Column, format_columns


def evidence_lines(status: ChainStatus, metric: str, *, width: int | None = WIDTH) -> list[str]:
    """The comparison as a table, its sentence, and what is missing; empty for a chain without evidence."""
    result = status.result.evidence if status.result else None
    condition = next((each for each in status.conditions if each.type == "EvidenceReady"), None)
    if condition is None:
        return []
    # With a verdict, the sentence says all, unless a control failed.
    waiting = [] if condition.status == "True" else [f"evidence: {condition.message}"]
    if result is None:
        return ["", *waiting]
    return ["", _table(result, metric, width), "", *_words(result), *waiting]


def _table(result: EvidenceResult, metric: str, width: int | None) -> str:
    columns = [
        Column("EVIDENCE"),
        Column(metric.upper(), right=True),
        Column("CHAIN MINUS IT", right=True),
        Column("95 % INTERVAL", right=True),
        Column("P", right=True),
        Column("DETECTABLE", right=True),
    ]
    own = [result.stage, result.metric, "", "", "", ""]
    return format_columns(columns, [own, *(_cells(control) for control in result.controls)], width=width)


def _cells(control: ControlResult) -> list[str]:
    interval = f"{_signed(control.low)} to {_signed(control.high)}"
    difference = _signed(control.difference)
    return [control.control, control.metric, difference, interval, control.p_value, control.detectable]


def _signed(value: str) -> str:
    return value if value.startswith("-") else f"+{value}"


def _words(result: EvidenceResult) -> list[str]:
    measured = f"means of {result.seeds} seeds on {result.rows:,} validation rows"
    others = [f"{other.stage}: {other.outcome}: {other.sentence}" for other in result.other_stages]
    return [
        f"{result.outcome}: {result.sentence}",
        *others,
        f"{measured}; a gain below {result.smallest_gain} does not count",
        *(f"not compared: {sentence}" for sentence in result.missing),
        f"all numbers: {result.uri}",
    ]
