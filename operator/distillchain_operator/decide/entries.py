"""The status entry of a stage that is not committed: pending, running, suspended, blocked or failed. Pure."""

from __future__ import annotations

from datetime import datetime

from distillchain_api.failures import FailureClass
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import StageProgress, StageStatus
from distillchain_api.wire.answer import fit
from distillchain_operator.decide.restarts import pauses_before
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.kueue import admission, describe_queue, is_held
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod
from distillchain_operator.jobs.policy import (
    NOTE_BYTES,
    PodNote,
    describe_end,
    describe_pod,
    diagnose,
    diagnose_pod,
    is_long_ago,
)
from distillchain_operator.status.chain_status import timestamp
from distillchain_operator.status.committed import progress_status


def pending(stage: PlannedStage, message: str) -> StageStatus:
    """A stage that waits."""
    return StageStatus(name=stage.name, phase="Pending", digest=stage.digest, message=message)


def failed(
    stage: PlannedStage,
    failure_class: FailureClass,
    message: str,
    *,
    job: ObservedJob | None = None,
    attempt: int = 0,
) -> StageStatus:
    """A stage that failed, with the Job that did, if there was one."""
    return StageStatus(
        name=stage.name,
        phase="Failed",
        digest=stage.digest,
        job=job.name if job else None,
        attempt=attempt,
        started_at=(job.created_at or None) if job else None,
        finished_at=(job.finished_at or None) if job else None,
        message=message,
        failure_class=failure_class,
    )


def running(view: View, stage: PlannedStage, job: ObservedJob) -> StageStatus:
    """A stage whose Job is not finished; suspended when the spec says so."""
    pods = view.observed.pods_of(job)
    attempt = view.attempt(stage, job)
    unfinished = [pod for pod in reversed(pods) if not pod.is_over]
    before = view.entry_of(stage, job)
    # The log is read only every few seconds, so a reconcile between two reads keeps the last progress.
    progress = before.progress if before else None
    if progress is not None and view.has_later_pod(stage, job):
        # Its first line may be of the same step, long after its start: it downloads and compiles again.
        progress = progress.model_copy(update={"changed_at": None})
    if view.progress is not None and view.progress.stage == stage.name:
        progress = _seen_first(progress_status(view.progress), before=progress, now=view.now)
    # While the chain is suspended, the only question about a pod is whether it stops.
    note = _note(view, [pod for pod in unfinished if pod.deleting or not view.suspends])
    is_stuck = note is not None and note.needs_user
    message = _running_message(view, job, pods, note, attempt=attempt)
    waits = view.resume_waits_for(job)
    if view.suspends and not is_stuck:
        message = _suspended_message(unfinished)
    if waits is not None:
        message = waits[0]
    last = view.previous_entry(stage)
    held = is_held(job) and not unfinished
    return StageStatus(
        name=stage.name,
        phase="Suspended" if view.suspends else "Pending" if held or waits else "Running",
        digest=stage.digest,
        job=job.name,
        attempt=attempt,
        pod_uid=view.last_pod(job),
        admission=waits[1] if waits else admission(job, pods),
        started_at=job.created_at or None,
        progress=progress,
        message=message,
        failure_class=FailureClass.POD_REJECTED if is_stuck else None,
        # The next pause is longer, until all pods have started.
        missed_starts=last.missed_starts if last and not _all_run(job, pods) else None,
        restart_pauses=pauses_before(view, job, last.restart_pauses) if last else None,
        stalls=last.stalls if last else None,
    )


def _seen_first(read: StageProgress, *, before: StageProgress | None, now: datetime) -> StageProgress:
    """The progress that was read, with the time when its step was seen first."""
    is_same = before is not None and (before.phase, before.step) == (read.phase, read.step)
    since = before.changed_at if before is not None and is_same else None
    return read.model_copy(update={"changed_at": since or timestamp(now)})


def _all_run(job: ObservedJob, pods: list[ObservedPod]) -> bool:
    return len({pod.index for pod in pods if pod.running or pod.phase == "Succeeded"}) == job.nodes


def _note(view: View, pods: list[ObservedPod]) -> PodNote | None:
    """The state of the pod that matters most: one that needs the user, then one that waits, the leader first."""
    ordered = sorted(pods, key=lambda pod: pod.index)
    found = [note for pod in ordered if (note := describe_pod(pod, now=view.now))]
    return next((note for note in found if note.needs_user), found[0] if found else None)


def waits_for(view: View, job: ObservedJob) -> str:
    """What a pod of the Job waits for, or why one that was deleted is still there; empty if there is none."""
    note = _note(view, [pod for pod in view.observed.pods_of(job) if pod.has_not_started or pod.deleting])
    return note.message if note else ""


def count_running(view: View, job: ObservedJob) -> str:
    """`2 of 4 pods are running`, for a Job on several nodes that do not all run; otherwise empty."""
    count = len({pod.index for pod in view.observed.pods_of(job) if pod.running and not pod.deleting})
    return f"{count} of {job.nodes} pods are running" if count < job.nodes > 1 else ""


def _suspended_message(unfinished: list[ObservedPod]) -> str:
    if not unfinished:
        return "suspended; it resumes from its last saved state"
    return f"stopping: pod {min(unfinished, key=lambda pod: pod.index).name} is saving its state"


def _running_message(
    view: View, job: ObservedJob, pods: list[ObservedPod], note: PodNote | None, *, attempt: int
) -> str | None:
    notes = list(filter(None, (count_running(view, job), note.message if note else "")))
    if is_held(job):
        # That a pod stops is known then. One that does not stop needs the user.
        needs_user = [note.message] if note and note.needs_user else []
        notes = [describe_queue(job, pods), *needs_user]
    elif job.suspend_wanted and not job.noted_suspended:
        patch = f"""kubectl patch job {job.name} -p '{{"spec":{{"suspend":false}}}}'"""
        notes.append(
            f"Job {job.name} was suspended by another controller, which resumes it; if no controller manages the Job: "
            f"{patch}; if Kueue does, the Job has no queue: set queueName"
        )
    # The Job controller creates a replacement with a delay, which doubles after each crash.
    elif all(pod.is_over for pod in pods):
        # A quota or an admission policy can keep the Job controller from creating the pod. Only the Job's Events say
        # so.
        is_late = not pods and is_long_ago(job.started_at, now=view.now)
        what = "its pod" if job.nodes == 1 else "its pods"
        notes.append(f"waiting for {what}" + (f"; run kubectl describe job {job.name} to see why" if is_late else ""))
    notes.extend(_earlier_attempts(job, pods, attempt=attempt))
    return "; ".join(notes) or None


def _earlier_attempts(job: ObservedJob, pods: list[ObservedPod], *, attempt: int) -> list[str]:
    """How many pods of the Job were replaced, and why the last one was; nothing during a first attempt."""
    # Evictions and interruptions use up no retry (POD_FAILURE_POLICY).
    crashed = [p for p in pods if p.phase == "Failed" and not p.disrupted and p.end and not p.end.is_interruption]
    # Without the pods of a group that end as interrupted because they lost the one that was evicted.
    over = [pod for pod in pods if pod.is_over and not (job.nodes > 1 and _is_only_interrupted(pod))]
    notes = []
    # The Job controller's number, because pods that crashed may have been deleted.
    if job.failed and crashed:
        last = fit(diagnose_pod(crashed[-1]).message, NOTE_BYTES)
        # Pods that a node refused to run are counted too, until the Job fails of them (restarts.py).
        crashes = max(job.failed - sum(pod.was_refused for pod in pods), 1)
        notes.append(f"attempt {attempt}, {crashes} of {job.retries + 1} allowed crashes used: {last}")
    elif attempt > 1:
        notes.append(f"attempt {attempt}")
    if over and (over[-1].disrupted or over[-1].was_refused):
        notes.append(describe_end(over[-1]))
    return notes


def _is_only_interrupted(pod: ObservedPod) -> bool:
    return pod.end is not None and pod.end.is_interruption and not pod.disrupted


def without_answer(view: View, job: ObservedJob) -> str:
    """Why a Job that succeeded has no result."""
    if job.managed_by:
        return (
            f"Job {job.name} succeeded, but {job.managed_by} left no pod with its result in this namespace; use a "
            "controller or a queue that runs the pods here, then distillchain retry: a committed stage is found"
        )
    ends = [pod.end for pod in view.leaders_of(job) if pod.end]
    if any(end.answer is None and end.message.startswith('{"outcome"') for end in ends):
        return (
            f"Job {job.name} succeeded, but the kubelet has cut its result off: it keeps 12 KiB of the messages of all "
            "containers of a pod; use fewer containers, then distillchain retry: a committed stage is found"
        )
    return (
        f"Job {job.name} succeeded, but its trainer reported no result for this stage; use the trainer image of this "
        "release"
    )


def failed_job(view: View, stage: PlannedStage, job: ObservedJob) -> StageStatus:
    """A stage whose Job failed, or succeeded without a trainer's answer."""
    attempt = view.attempt(stage, job)
    if not job.has_failed:
        return failed(stage, FailureClass.CRASHED, without_answer(view, job), job=job, attempt=attempt)
    before = view.entry_of(stage, job)
    # The pods of a Job that timed out are deleted; what they waited for is known only from the last status.
    never_trained = before is not None and before.phase == "Running" and before.progress is None
    waited_for = (before.message or "") if before and never_trained else ""
    diagnosis = diagnose(job, view.observed.pods_of(job), waited_for=waited_for)
    entry = failed(stage, diagnosis.failure_class, diagnosis.message, job=job, attempt=attempt)
    # When a Job times out, its pods are deleted and their logs with them, so the last known progress is kept.
    return entry.model_copy(update={"progress": before.progress if before else None})
