"""`distillchain describe`: all about one chain on one page, as `kubectl describe` prints it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from distillchain_api.resource.status import ChainStatus
from distillchain_cli.api_server.chains import seconds_since
from distillchain_cli.output.columns import WIDTH, Column, age, format_columns
from distillchain_cli.status.events import Event, events_table
from distillchain_cli.status.view import status_text

HIDDEN_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration",)
LABEL_WIDTH = 14


def describe(chain: dict[str, Any], status: ChainStatus, events: Sequence[Event] | None, *, now: datetime) -> str:
    """Metadata, what the spec names, status, conditions and Events.

    Args:
        events: None: the user may not read them.
    """
    parts = [_facts(chain, now), "", status_text(chain, status, wide=False)]
    if status.conditions:
        parts += ["", _conditions(status, now)]
    if events is None:
        parts += ["", "events: not allowed to read them"]
    else:
        parts += ["", events_table(events, now=now) if events else "events: none"]
    return "\n".join(parts)


def _facts(chain: dict[str, Any], now: datetime) -> str:
    metadata, spec = chain["metadata"], chain["spec"]
    annotations = {
        name: value for name, value in metadata.get("annotations", {}).items() if name not in HIDDEN_ANNOTATIONS
    }
    task = spec["task"]
    rows = [
        ("Name", metadata["name"]),
        ("Namespace", metadata["namespace"]),
        ("Labels", _pairs(metadata.get("labels", {}))),
        ("Annotations", _pairs(annotations)),
        ("Created", f"{metadata['creationTimestamp']} ({age(seconds_since(metadata['creationTimestamp'], now))} ago)"),
        ("Generation", str(metadata.get("generation", ""))),
        ("Task", f"{task.get('type', '')} on {(task.get('dataset') or {}).get('uri', '')}"),
        ("Teacher", spec["teacher"].get("model", "")),
        ("Students", " -> ".join(_students(spec["stages"]))),
        ("Storage", spec["storage"].get("uri", "")),
        ("Suspended", "yes" if spec.get("suspend") else "no"),
    ]
    return "\n".join(f"{label + ':':<{LABEL_WIDTH}}{value or '-'}" for label, value in rows)


def _students(stages: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"{stage['name']} ({start})" if (start := _start(stage)) else stage["name"] for stage in stages]


def _start(stage: Mapping[str, Any]) -> str:
    student = stage.get("student") or {}
    if student.get("fromTeacher"):
        return "layers of its teacher"
    return str(student.get("model") or f"new {(student.get('architecture') or {}).get('modelType', 'model')}")


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _conditions(status: ChainStatus, now: datetime) -> str:
    columns = [Column("CONDITION"), Column("STATUS"), Column("REASON"), Column("SINCE", right=True), Column("MESSAGE")]
    rows = [
        [each.type, each.status, each.reason, age(seconds_since(each.last_transition_time, now)), each.message]
        for each in status.conditions
    ]
    return format_columns(columns, rows, width=WIDTH, wrap_last=True)
