"""A stage whose pods do not all start within `pendingDeadline`: its Job is deleted and created again later. Pure.

The pods of a group wait for each other, so as long as one of them waits for a node, the others hold GPUs in vain. Two
chains that each wait for a GPU of the other would wait forever.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from distillchain_api.digests import sha256_of
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import StageStatus
from distillchain_api.wire.answer import fit
from distillchain_operator import entries
from distillchain_operator.observed import ObservedJob
from distillchain_operator.status import timestamp
from distillchain_operator.view import View

# The pause doubles: a GPU that is not free after minutes will hardly be free a minute later.
FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(minutes=30)


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
    if waiting:
        return min(waiting)
    # A pod that was never created, for example because a quota is used up. Once the stage has trained, a pod can be
    # missing for another reason: it was deleted a moment ago, or the Job controller waits before it replaces it.
    before = view.entry_of(stage, job)
    has_trained = job.failed or (before is not None and before.progress is not None)
    missing = job.nodes - len({pod.index for pod in pods})
    return job.started_at if missing > 0 and not has_trained else ""


def missed_start(view: View, stage: PlannedStage, job: ObservedJob) -> StageStatus | None:
    """The entry of a stage whose Job must be deleted because a pod has waited too long; None if it must not."""
    deadline = starts_by(view, stage, job)
    if deadline is None or view.now < deadline:
        return None
    before = view.previous_entry(stage)
    missed = (before.missed_starts or 0) + 1 if before else 1
    again = timestamp(view.now + _pause(missed, job))
    count = entries.count_running(view, job).replace("are running", "ran") or "its pod did not start"
    message = (
        f"{count} within the pendingDeadline of {stage.pending_deadline_s} s, so Job {job.name} was deleted; it is "
        f"created again at {again}"
    )
    reason = entries.waits_for(view, job)
    entry = entries.pending(stage, fit("; ".join(filter(None, (message, reason)))))
    return entry.model_copy(update={"missed_starts": missed, "next_start_at": again})


def _pause(missed: int, job: ObservedJob) -> timedelta:
    longest = min(FIRST_PAUSE * 2.0 ** min(missed - 1, 20), LONGEST_PAUSE)
    # Between half and all of it, different for each Job: otherwise two chains that wait for each other's GPUs would try
    # again at the same moment.
    return longest * (0.5 + int(sha256_of(job.uid)[:8], 16) / 2**33)


def held_back(view: View, stage: PlannedStage) -> StageStatus | None:
    """The entry of a stage whose Job may not be created again yet; None if it may. An edit may be the remedy."""
    before = view.previous_entry(stage)
    if before is None or before.next_start_at is None or view.was_edited:
        return None
    return before if view.now < datetime.fromisoformat(before.next_start_at) else None
