"""Pods that end again and again without a crash: their Job is deleted and created again after a pause. Pure.

Evictions and interruptions (exit code 75) use no retry. On one node, the Job controller replaces such a pod at once:
its backoff counts crashes only. A liveness probe that fails, or a node without disk space, would otherwise start a pod
every second, for ever. Pods that the kubelet refuses to run are the opposite: the Job controller counts each of them as
a crash, although nothing has run.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from distillchain_api.failures import FailureClass
from distillchain_operator.decide.pauses import Pause, build_pause
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod
from distillchain_operator.jobs.policy import describe_end

# A Job may replace five pods at once, as when a disk is full for a while, and one more every 20 minutes. Guesses.
AT_ONCE = 5
ONE_EVERY = timedelta(minutes=20)
STALLS_AT = 3  # pauses in a row: then the cause will hardly go away by itself
STEADY = timedelta(hours=1)  # a Job that is so old has left earlier pauses behind


def ends_too_often(view: View, job: ObservedJob, *, pauses: int | None) -> Pause | None:
    """The pause after a running Job whose pods are evicted or interrupted too often; None if they are not.

    Args:
        pauses: how many there were in a row before.
    """
    if view.suspends or job.suspend_wanted:
        return None
    ended = [pod for pod in view.leaders_of(job) if _has_ended_in_vain(pod)]
    if (burst := _burst([_ended_at(pod) for pod in ended], now=view.now)) is None:
        return None
    count, within = burst
    number = (pauses_before(view, job, pauses) or 0) + 1
    return build_pause(
        job,
        what=f"{count} pods were evicted or interrupted within {max(round(within.total_seconds() / 60), 1)} min",
        detail=describe_end(ended[-1]),
        why="its pods were evicted or interrupted too often",
        number=number,
        now=view.now,
        failure_class=FailureClass.INTERRUPTED if number >= STALLS_AT else None,
    )


def refused_by_nodes(view: View, job: ObservedJob, *, pauses: int | None) -> Pause | None:
    """The pause after a Job that failed because nodes refused its pods; None if its crashes used up the retries."""
    refused = [pod for pod in view.observed.pods_of(job) if pod.was_refused]
    if job.reason not in ("BackoffLimitExceeded", "FailedIndexes") or not refused:
        return None
    if job.failed - len(refused) > job.retries:
        return None
    number = (pauses_before(view, job, pauses) or 0) + 1
    return build_pause(
        job,
        what=f"{len(refused)} of its pods were refused by their nodes, which is not counted as a crash",
        detail=describe_end(refused[-1]),
        why="nodes refused its pods",
        number=number,
        now=view.now,
        failure_class=FailureClass.POD_REJECTED if number >= STALLS_AT else None,
    )


def pauses_before(view: View, job: ObservedJob, pauses: int | None) -> int | None:
    """How many pauses in a row there were before a Job; none once it is steady."""
    return pauses if pauses and view.now - datetime.fromisoformat(job.created_at) < STEADY else None


def _burst(ends: list[datetime], *, now: datetime) -> tuple[int, timedelta] | None:
    """How many pods ended within what time, if that is too often; None if it is not.

    Whichever end the count begins with: a Job that ran well for days has saved up no more than AT_ONCE.
    """
    ends = sorted(ends)
    spans = ((len(ends) - place, now - first) for place, first in enumerate(ends))
    return next(((count, span) for count, span in spans if count > AT_ONCE + span / ONE_EVERY), None)


def _has_ended_in_vain(pod: ObservedPod) -> bool:
    """Whether a pod was evicted by its node or interrupted, which the Job controller does not count.

    A pod that was deleted is not meant: a suspension, a preemption and a drain each delete it on purpose, and the next
    pod then waits until it may run.
    """
    return pod.phase == "Failed" and not pod.deleting and not _is_crash(pod)


def _ended_at(pod: ObservedPod) -> datetime:
    # The kubelet may not have seen the end, and the clock of its node may be wrong.
    times = filter(None, (pod.created_at, pod.end.finished_at if pod.end else ""))
    return max(datetime.fromisoformat(time) for time in times)


def _is_crash(pod: ObservedPod) -> bool:
    return pod.phase == "Failed" and not pod.disrupted and not (pod.end is not None and pod.end.is_interruption)
