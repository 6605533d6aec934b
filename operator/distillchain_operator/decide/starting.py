"""A stage whose pods do not all start within `pendingDeadline`: its Job is deleted and created again later. Pure.

The pods of a group wait for each other, so as long as one of them waits for a node, the others hold idle GPUs. Two
chains that each wait for a GPU of the other would wait forever.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from distillchain_api.graph import PlannedStage
from distillchain_operator.decide import entries
from distillchain_operator.decide.pauses import Pause, build_pause
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.status.chain_status import timestamp

EDITED = "the chain was edited before its pod started"  # why a Job is deleted


def starts_by(view: View, stage: PlannedStage, job: ObservedJob) -> datetime | None:
    """When all pods of a Job must have started; None if none waits or no deadline is set."""
    if stage.pending_deadline_s is None or job.suspend_wanted or view.suspends or job.is_finished or job.deleting:
        return None
    since = _waits_since(view, stage, job)
    return datetime.fromisoformat(since) + timedelta(seconds=stage.pending_deadline_s) if since else None


def _waits_since(view: View, stage: PlannedStage, job: ObservedJob) -> str:
    """Since when a pod of the Job waits to start; empty: none does."""
    pods = view.observed.pods_of(job)
    waiting = [pod.created_at for pod in pods if pod.has_not_started]
    # Those of a group also wait for one whose node is lost: until it has stopped, no other takes its place.
    if job.nodes > 1:
        now = timestamp(view.now)
        waiting += [pod.stop_by for pod in pods if not pod.is_over and "" < pod.stop_by <= now]
    if waiting:
        return min(waiting)
    # A pod that was never created, for example because a quota is used up. Once the stage has trained, a pod can be
    # missing for another reason: it was deleted a moment ago, or the Job controller waits before it replaces it.
    before = view.entry_of(stage, job)
    has_trained = job.failed or (before is not None and before.progress is not None)
    missing = job.nodes - len({pod.index for pod in pods})
    return job.started_at if missing > 0 and not has_trained else ""


def missed_start(view: View, stage: PlannedStage, job: ObservedJob, *, missed: int) -> Pause | None:
    """The pause after a Job with a pod that has waited too long; None if none has.

    Args:
        missed: how often that has happened in a row before.
    """
    deadline = starts_by(view, stage, job)
    if deadline is None or view.now < deadline:
        return None
    count = entries.count_running(view, job).replace("are running", "ran") or "its pod did not start"
    return build_pause(
        job,
        what=f"{count} within the pendingDeadline of {stage.pending_deadline_s} s",
        detail=entries.waits_for(view, job),
        why="a pod waited longer than pendingDeadline",
        number=missed + 1,
        now=view.now,
    )
