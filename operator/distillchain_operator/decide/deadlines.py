"""A stage that runs longer than `timeout`, one whose trainer makes no progress, and a chain that runs too long. Pure.

Their Job is deleted: its pods get SIGTERM and may save their state.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from distillchain_api.failures import FailureClass
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import ChainPhase, StageStatus
from distillchain_api.values import duration_seconds
from distillchain_operator.decide import entries
from distillchain_operator.decide.pauses import Pause, build_pause
from distillchain_operator.decide.run_time import is_running, time_run
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.status.chain_status import timestamp

RESUMES = "training resumes from the saved state"
# Here a trainer reports each step or row. Before the first one and after the last one it may download, encode, compile
# or upload for a long time, and says nothing.
PHASES_OF_STEPS = ("MeasureTeacher", "MeasureStudent", "TeacherLogits", "Train")


def times_out_at(view: View, stage: PlannedStage, job: ObservedJob) -> datetime | None:
    """When the stage has run for its timeout; None without one, and while its trainer does not run."""
    if stage.timeout_s is None or view.suspends or job.suspend_wanted or not is_running(view, job):
        return None
    # The Job controller counts a deadline of the Job: that of an earlier release, or of a policy of the cluster.
    if job.deadline_s is not None:
        return None
    return view.now + timedelta(seconds=stage.timeout_s) - time_run(view, job)


def timed_out(view: View, stage: PlannedStage, job: ObservedJob) -> str | None:
    """Why the stage fails of its timeout; None if it does not."""
    moment = times_out_at(view, stage, job)
    if moment is None or view.now < moment:
        return None
    return f"ran longer than its timeout of {stage.timeout_s} s; raise timeout: {RESUMES}"


def failed_before(view: View, stage: PlannedStage, job: ObservedJob) -> StageStatus | None:
    """The entry of a stage that has failed of a deadline of this very Job; an edit may be the remedy."""
    entry = None if view.was_edited else view.entry_of(stage, job)
    is_failed = entry is not None and entry.failure_class is FailureClass.DEADLINE_EXCEEDED and entry.phase == "Failed"
    return entry if is_failed else None


def stopped_progressing(view: View, stage: PlannedStage, job: ObservedJob) -> str | None:
    """What the trainer of a Job has not done within `progressDeadline`; None if it is within it.

    Only a log that was read just now counts: a kubelet that does not answer is no reason to stop a trainer.
    """
    before = view.entry_of(stage, job)
    known, read = before.progress if before else None, view.progress
    if stage.progress_deadline_s is None or view.suspends or known is None or known.changed_at is None:
        return None
    if read is None or read.stage != stage.name or (read.phase, read.step) != (known.phase, known.step):
        return None
    if read.phase not in PHASES_OF_STEPS or not 0 < read.step < read.of or not is_running(view, job):
        return None
    # The step in status was that of an earlier pod, and this look has read the first line of the next one.
    if view.has_later_pod(stage, job):
        return None
    if view.now - datetime.fromisoformat(known.changed_at) < timedelta(seconds=stage.progress_deadline_s):
        return None
    return (
        f"its trainer made no progress within the progressDeadline of {stage.progress_deadline_s} s, at step "
        f"{read.step} of {read.of} ({read.phase})"
    )


def stall_pause(view: View, stage: PlannedStage, job: ObservedJob, what: str, *, stalls: int) -> Pause | None:
    """The pause before the Job is created again; None if the stage has no retry left.

    Args:
        what: the sentence of `stopped_progressing`.
        stalls: how often that has happened before.
    """
    if stalls >= stage.retries:
        return None
    number = stalls + 1
    detail = f"{number} of {stage.retries} retries used"
    why = "its trainer made no progress within progressDeadline"
    return build_pause(job, what=what, detail=detail, why=why, number=number, now=view.now)


def chain_times_out_at(view: View) -> datetime | None:
    """When the chain has run for `spec.timeout`; None without one, and while it does not run."""
    timeout, started_at = view.plan.chain.spec.timeout, view.previous.started_at
    if timeout is None or started_at is None or view.suspends or _is_new_run(view):
        return None
    return datetime.fromisoformat(started_at) + timedelta(seconds=duration_seconds(timeout))


def failed_by_chain_timeout(view: View, stage: PlannedStage) -> StageStatus | None:
    """The entry of a stage that may not run because the chain has used up its time; None if it may."""
    moment = chain_times_out_at(view)
    # Controls train beside the chain, or after its success.
    if moment is None or view.now < moment or stage.is_evidence:
        return None
    message = f"the chain ran longer than its timeout of {view.plan.chain.spec.timeout}; raise spec.timeout: {RESUMES}"
    return entries.failed(stage, FailureClass.DEADLINE_EXCEEDED, message)


def chain_started_at(view: View, phase: ChainPhase) -> str | None:
    """Since when the chain runs without a break; a pause before the Job of its first stage is none.

    Args:
        phase: of the chain after this look.
    """
    if phase == "Suspended":
        return None
    before = None if phase in ("Pending", "Running") and _is_new_run(view) else view.previous.started_at
    return before or (timestamp(view.now) if phase == "Running" else None)


def _is_new_run(view: View) -> bool:
    """Whether a retry, or an edit of a chain that had ended, gives it the whole time again."""
    own = {entry.name: entry.phase for entry in view.previous.stages}
    # A control runs beside the chain, and the user may have mistyped a name.
    failed = {name for name, phase in own.items() if phase == "Failed"}
    if view.retried & failed or view.trained_again & set(own):
        return True
    has_ended = view.has_ended or bool(failed) or all(phase == "Committed" for phase in own.values())
    return view.was_edited and has_ended
