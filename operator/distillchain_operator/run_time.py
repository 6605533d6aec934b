"""How long the trainer of a stage has run, without the time that its pods waited for a node or an image. Pure.

Kubernetes counts `activeDeadlineSeconds` of a Job from its start: a stage that waits six hours for a GPU would have
used up a timeout of six hours before it trains. So the operator counts the pods of node 0 itself. Those that are gone
are noted on the Job.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from distillchain_operator.observed import ObservedJob, ObservedPod
from distillchain_operator.view import View

CLOCKS = timedelta(minutes=5)  # a node's clock may be that much behind


class Run(NamedTuple):
    """When the trainer of one pod has run.

    Attributes:
        ended_at: None while it runs, and if nobody has seen its end.
    """

    started_at: datetime
    ended_at: datetime | None


def note_of(pod: ObservedPod) -> str:
    """What is noted of a pod on its Job: `UID`, `UID=START` or `UID=START/END`."""
    if not pod.started_at:
        return pod.short_uid
    ended_at = pod.end.finished_at if pod.end else ""
    return f"{pod.short_uid}={'/'.join(filter(None, (pod.started_at, ended_at)))}"


def time_run(view: View, job: ObservedJob) -> timedelta:
    """How long the trainers of a Job have run since it was resumed last."""
    runs = sorted(_runs(view, job), key=lambda run: run.started_at)
    # A suspension deletes the pods, and the Job controller sets the start of the Job again when it is resumed.
    since = (datetime.fromisoformat(job.started_at) if job.started_at else view.now) - CLOCKS
    total = timedelta()
    for place, run in enumerate(runs):
        if run.started_at < since:
            continue
        following = runs[place + 1].started_at if place + 1 < len(runs) else view.now
        total += max((run.ended_at or following) - run.started_at, timedelta())
    return total


def _runs(view: View, job: ObservedJob) -> list[Run]:
    listed = {pod.short_uid: pod for pod in view.leaders_of(job)}
    noted = {uid: times for uid, times in job.noted_runs.items() if uid not in listed}
    texts = [note_of(pod).partition("=")[2] for pod in listed.values()] + list(noted.values())
    runs = []
    for start, _, end in (text.partition("/") for text in texts if text):
        runs.append(Run(datetime.fromisoformat(start), datetime.fromisoformat(end) if end else None))
    return runs


def is_running(view: View, job: ObservedJob) -> bool:
    """Whether the trainer of node 0 runs now."""
    return any(pod.running and not pod.deleting for pod in view.leaders_of(job))
