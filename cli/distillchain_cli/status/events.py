"""The Kubernetes Events of a chain, its Jobs, pods and Workloads, in order: as frozen values, and as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from distillchain_api import KIND
from distillchain_api.failures import FailureClass
from distillchain_cli.api_server.chains import seconds_since, status_of
from distillchain_cli.output.columns import WIDTH, Column, age, format_columns
from distillchain_operator.jobs.labels import (
    EVENT_FAILURE_CLASS_ANNOTATION,
    EVENT_JOB_ANNOTATION,
    EVENT_STAGE_ANNOTATION,
)

WORKLOAD_BASE_CHARS, WORKLOAD_HASH_CHARS = 57, 5
"""How much of `job-<job>` the name of Kueue's Workload keeps if it is cut, and the length of the hash after it."""
POD_BASE_CHARS, POD_RANDOM_CHARS = 58, 5
"""How much of a pod's generateName (`<job>-`) the API server keeps, and how much it appends."""


@dataclass(frozen=True)
class Event:
    """One Event, or several equal ones that Kubernetes counts as one."""

    first_at: str
    last_at: str
    type: str
    reason: str
    kind: str
    name: str
    uid: str
    note: str
    stage: str = ""
    """Of an Event about the chain itself, stage, Job and failure class are the operator's annotations."""
    job: str = ""
    failure_class: FailureClass | None = None
    count: int = 1
    source: str = ""
    document: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The Event as the API server holds it."""


def events_of(chain: dict[str, Any], documents: Iterable[dict[str, Any]]) -> list[Event]:
    """The Events of the chain, its Jobs, their pods and Kueue's Workloads of the Jobs, oldest first.

    Jobs and pods are recognised by name, not by UID: an evicted pod and the Job of an edited stage no longer exist, and
    their Events are the ones that matter. Whole names are compared, because Jobs of two chains can start alike.
    """
    metadata = chain["metadata"]
    all_events = [parse_event(document) for document in documents]
    of_chain = [event for event in all_events if event.kind == KIND and event.uid == metadata["uid"]]
    stages = _stages_by_job(chain, of_chain)
    # Pods are known only through their Jobs: a pod's name starts with the name of its Job.
    stages_by_pod = {_pod_base(job): stage for job, stage in stages.items()}
    stages_by_workload = {base: stage for job, stage in stages.items() for base in _workload_bases(job)}
    events = list(of_chain)
    for event in all_events:
        if event.kind == "Job" and event.name in stages:
            events.append(replace(event, stage=stages[event.name]))
        elif event.kind == "Pod" and (base := event.name[:-POD_RANDOM_CHARS]) in stages_by_pod:
            events.append(replace(event, stage=stages_by_pod[base]))
        elif event.kind == "Workload" and (base := event.name[: -WORKLOAD_HASH_CHARS - 1]) in stages_by_workload:
            events.append(replace(event, stage=stages_by_workload[base]))
    # Events of an earlier, deleted chain with the same name are left out.
    created_at = _moment(metadata["creationTimestamp"])
    return sorted(
        (event for event in events if _moment(event.last_at) >= created_at),
        key=lambda event: (_moment(event.last_at), _moment(event.first_at)),
    )


def _stages_by_job(chain: dict[str, Any], events: Iterable[Event]) -> dict[str, str]:
    """Stage of each known Job: those in the status, and those that the chain's own Events name."""
    jobs = {event.job: event.stage for event in events if event.job}
    # The status wins: it names the present Job of a stage.
    return jobs | {entry.job: entry.name for entry in status_of(chain).entries if entry.job}


def _pod_base(job: str) -> str:
    """How the names of a Job's pods start; the API server cuts the end of a long Job name."""
    return f"{job}-"[:POD_BASE_CHARS]


def _workload_bases(job: str) -> tuple[str, str]:
    """How the name of a Job's Workload starts, without and with Kueue's feature ShortWorkloadNames."""
    base = f"job-{job}"
    return base, base[:WORKLOAD_BASE_CHARS]


def parse_event(document: dict[str, Any]) -> Event:
    """An Event of the core group. Writers that use events.k8s.io set `eventTime` instead of the older timestamps."""
    metadata, series = document["metadata"], document.get("series") or {}
    annotations = metadata.get("annotations") or {}
    # Another release may have failure classes that this one does not know.
    failure_class = annotations.get(EVENT_FAILURE_CLASS_ANNOTATION)
    involved = document.get("involvedObject") or {}
    first_at = document.get("eventTime") or document.get("firstTimestamp") or metadata["creationTimestamp"]
    return Event(
        first_at=first_at,
        last_at=series.get("lastObservedTime") or document.get("lastTimestamp") or first_at,
        type=document.get("type", ""),
        reason=document.get("reason", ""),
        kind=involved.get("kind", ""),
        name=involved.get("name", ""),
        uid=involved.get("uid", ""),
        note=" ".join(document.get("message", "").split()),
        stage=annotations.get(EVENT_STAGE_ANNOTATION, ""),
        job=annotations.get(EVENT_JOB_ANNOTATION, ""),
        failure_class=FailureClass(failure_class) if failure_class in set(FailureClass) else None,
        count=series.get("count") or document.get("count") or 1,
        source=document.get("reportingComponent") or (document.get("source") or {}).get("component", ""),
        document=document,
    )


def events_table(events: Sequence[Event], *, now: datetime, wide: bool = False) -> str:
    """A row for each Event. A long note is wrapped into further lines, unless `wide`."""
    columns = [Column("LAST SEEN", right=True), Column("TYPE"), Column("REASON"), Column("STAGE"), Column("KIND")]
    if wide:
        columns += [Column("NAME"), Column("FIRST SEEN", right=True), Column("COUNT", right=True), Column("SOURCE")]
    rows = []
    for event in events:
        row = [age(seconds_since(event.last_at, now)), event.type, event.reason, event.stage, short_kind(event.kind)]
        if wide:
            row += [event.name, age(seconds_since(event.first_at, now)), str(event.count), event.source]
        rows.append([*row, event.note])
    return format_columns([*columns, Column("MESSAGE")], rows, width=None if wide else WIDTH, wrap_last=not wide)


def short_kind(kind: str) -> str:
    """`chain`, `job`, `pod`."""
    return "chain" if kind == KIND else kind.lower()


def _moment(timestamp: str) -> datetime:
    return datetime.fromisoformat(timestamp)
