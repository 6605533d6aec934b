"""How long the trainer of a stage has run, without the time that its pods waited for a node or an image. Pure.

Kubernetes counts `activeDeadlineSeconds` of a Job from its start: a stage that waits six hours for a GPU would have
used up a timeout of six hours before it trains. So the operator counts the pods of node 0 itself. Those that are gone
are noted on the Job.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod
from distillchain_operator.status.chain_status import timestamp

CLOCKS = timedelta(minutes=5)  # a node's clock may be that much behind


class Run(NamedTuple):
    """When the trainer of one pod has run.

    Attributes:
        ended_at: None while it runs.
    """

    started_at: datetime
    ended_at: datetime | None


def runs_to_note(view: View, job: ObservedJob) -> dict[str, str]:
    """What is to be noted on a Job of its pods of node 0: nothing, `START` or `START/END` by short UID.

    The times are noted only of a stage with a timeout.
    """
    runs = {uid: job.noted_runs.get(uid, "") for uid in view.pods_so_far(job)}
    if not view.has_timeout(job):
        return runs
    leaders = {pod.short_uid: pod for pod in view.leaders_of(job)}
    for uid, pod in leaders.items():
        # A kubelet that has not seen the end of a pod reports no times of it; what is known already stays.
        known = "" if pod.running else runs.get(uid, "")
        runs[uid] = max(known, _times_of(pod), key=len)
    is_open = {uid for uid, run in runs.items() if run and "/" not in run}
    return runs | {uid: _with_end(view, job, runs[uid], leaders.get(uid)) for uid in is_open}


def _times_of(pod: ObservedPod) -> str:
    ended_at = pod.end.finished_at if pod.end else ""
    return "/".join(filter(None, (pod.started_at, ended_at))) if pod.started_at else ""


def _with_end(view: View, job: ObservedJob, start: str, pod: ObservedPod | None) -> str:
    """A run without an end, with the latest moment at which it can have ended if its trainer does not run any more.

    Nobody has seen the end of a pod whose node disappeared, that was deleted by force, or that was evicted while the
    operator was down. Without an end, the wait of the next pod for a GPU would count.
    """
    now = timestamp(view.now)
    # Times of Kubernetes are RFC 3339 in UTC with whole seconds, so they compare as text.
    bounds = [other.created_at for other in view.leaders_of(job) if other.created_at > start]
    if pod is not None and pod.stop_by and pod.stop_by <= now:
        bounds.append(pod.stop_by)
    if pod is not None and pod.running and not bounds:
        return start
    return f"{start}/{min([now, *bounds])}"


def time_run(view: View, job: ObservedJob) -> timedelta:
    """How long the trainers of a Job have run since it was resumed last."""
    # A suspension deletes the pods, and the Job controller sets the start of the Job again when it is resumed.
    since = (datetime.fromisoformat(job.started_at) if job.started_at else view.now) - CLOCKS
    runs = (run for run in map(_parse, filter(None, runs_to_note(view, job).values())) if run.started_at >= since)
    return sum((max((run.ended_at or view.now) - run.started_at, timedelta()) for run in runs), timedelta())


def _parse(run: str) -> Run:
    start, _, end = run.partition("/")
    return Run(datetime.fromisoformat(start), datetime.fromisoformat(end) if end else None)


def is_running(view: View, job: ObservedJob) -> bool:
    """Whether the trainer of node 0 runs now."""
    return any(pod.running and not pod.deleting for pod in view.leaders_of(job))
