"""What to do next for one chain, and what to say of it: a pure function of what is observed.

Level-triggered: nothing is remembered but the status, and whatever was done half is seen and done whole. Strictly
sequential: a stage's Job is made only when its teacher is committed and no other pod of the chain is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from distillchain_api.answer import Committed, Progress, fit
from distillchain_api.failures import FailureClass
from distillchain_api.status import ChainStatus, StageStatus
from distillchain_operator.gates import surely_meets_gates
from distillchain_operator.jobs import NO_DEFAULTS, BadPodTemplate, JobDefaults, build_job
from distillchain_operator.labels import digest_label
from distillchain_operator.observed import JobState, Observed, ObservedJob, ObservedPod
from distillchain_operator.plan import Plan, PlannedStage
from distillchain_operator.policy import describe_waiting, diagnose, diagnose_pod, is_stuck
from distillchain_operator.status import build_chain_status, committed_entry, progress_status

NOTE_BYTES = 512  # of an earlier attempt's failure while the next one runs


@dataclass(frozen=True)
class CreateJob:
    """Make the Job of a stage, after a dry run."""

    stage: str
    job: dict[str, Any]


@dataclass(frozen=True)
class DeleteJob:
    """Delete a Job, its pods first."""

    name: str
    uid: str
    why: str


@dataclass(frozen=True)
class SetSuspend:
    """Stop the pods of a Job (their state is saved), or let it go on."""

    name: str
    uid: str
    suspend: bool


@dataclass(frozen=True)
class NotePods:
    """Note at a Job which pods were seen of it."""

    name: str
    uid: str
    pods: tuple[str, ...]
    """Short UIDs, all of them."""


Action = CreateJob | DeleteJob | SetSuspend | NotePods


@dataclass(frozen=True)
class Decision:
    """What to do, and the status once it is done."""

    actions: tuple[Action, ...]
    status: ChainStatus


@dataclass(frozen=True)
class _View:
    plan: Plan
    observed: Observed
    previous: ChainStatus
    defaults: JobDefaults
    progress: Progress | None


def reconcile(
    plan: Plan,
    observed: Observed,
    *,
    previous: ChainStatus,
    now: datetime,
    defaults: JobDefaults = NO_DEFAULTS,
    progress: Progress | None = None,
) -> Decision:
    """The next step of a chain.

    Args:
        observed: its Jobs and pods from live reads.
        previous: its status as stored.
        defaults: the operator's trainer image and pod template.
        progress: newest progress line of the running pod, when it was read.
    """
    view = _View(plan, observed, previous, defaults, progress)
    outdated = _delete_outdated(view)
    entries: list[StageStatus] = []
    actions: list[Action] = [*outdated, *_follow_suspend(view), *_note_pods(view)]
    waits_for = ""
    for stage in plan.stages:
        if waits_for:
            entries.append(_later_entry(view, stage, waits_for))
            continue
        entry, made = _step(view, stage, outdated={action.name for action in outdated})
        entries.append(entry)
        actions.extend(made)
        if entry.phase != "Committed":
            waits_for = stage.name
    pods_run = any(not pod.is_over for pod in observed.pods)
    status = build_chain_status(plan, entries, previous=previous, now=now, pods_run=pods_run)
    return Decision(tuple(actions), status)


def running_pod(plan: Plan, observed: Observed) -> ObservedPod | None:
    """The pod whose log has the chain's progress."""
    wanted = {(stage.name, digest_label(stage.digest)) for stage in plan.stages}
    jobs = {job.name for job in observed.jobs if (job.stage, job.digest) in wanted and not job.deleting}
    return next((pod for pod in observed.pods if pod.running and pod.job in jobs and not pod.deleting), None)


def _delete_outdated(view: _View) -> list[DeleteJob]:
    """Unfinished Jobs that make something the chain no longer asks for. Finished ones stay to be read."""
    wanted = {(stage.name, digest_label(stage.digest)) for stage in view.plan.stages}
    return [
        DeleteJob(job.name, job.uid, why="the chain was edited: this stage is no longer asked for")
        for job in view.observed.jobs
        if not job.is_finished and not job.deleting and (job.stage, job.digest) not in wanted
    ]


def _follow_suspend(view: _View) -> list[SetSuspend]:
    """What the chain says of suspending goes for every unfinished Job that it still asks for."""
    wanted = {(stage.name, digest_label(stage.digest)) for stage in view.plan.stages}
    suspend = view.plan.chain.spec.suspend
    return [
        SetSuspend(job.name, job.uid, suspend)
        for job in view.observed.jobs
        if (job.stage, job.digest) in wanted
        and not job.is_finished
        and not job.deleting
        and job.suspend_wanted != suspend
    ]


def _note_pods(view: _View) -> list[NotePods]:
    noted = []
    for job in view.observed.jobs:
        seen = job.noted_pods | {pod.short_uid for pod in view.observed.pods_of(job.name)}
        if seen != job.noted_pods and not job.is_finished and not job.deleting:
            noted.append(NotePods(job.name, job.uid, tuple(sorted(seen))))
    return noted


def _later_entry(view: _View, stage: PlannedStage, waits_for: str) -> StageStatus:
    """A stage behind the current one: what was committed stays so, the rest waits."""
    before = _previous_entry(view, stage)
    if before is not None and before.phase == "Committed":
        return before
    return _pending(stage, f"waiting for {waits_for} to commit")


def _step(view: _View, stage: PlannedStage, *, outdated: set[str]) -> tuple[StageStatus, list[Action]]:
    """The entry of the first stage that is not known to be committed, or of one that is."""
    manifest: dict[str, Any] | None = None
    name = fault = ""
    try:
        manifest = build_job(view.plan.chain, stage, defaults=view.defaults)
        name = manifest["metadata"]["name"]
    except BadPodTemplate as error:
        fault = str(error)

    before = _previous_entry(view, stage)
    if before is not None and before.phase == "Committed" and (before.job == name or surely_meets_gates(stage, before)):
        return before, []
    if committed := _committed_by_job(view, stage, wanted=name):
        return committed, []

    running = next((job for job in _jobs_of(view, stage) if not job.is_finished and not job.deleting), None)
    if running is not None and (running.name == name or not name or _has_started(view, running)):
        return _running(view, stage, running), []
    if running is not None:
        # Its pod waits for a node, an image, a Secret, or for the end of a crash's backoff: perhaps the very thing the
        # edit mends, and nothing but a start is lost.
        why = "the chain was edited before its pod started"
        return _pending(stage, f"replacing Job {running.name}"), [DeleteJob(running.name, running.uid, why=why)]
    finished = view.observed.by_name.get(name)
    if finished is not None and not finished.deleting:
        return _finished_without_commit(view, stage, finished)
    if view.plan.chain.spec.suspend:
        return StageStatus(name=stage.name, phase="Suspended", digest=stage.digest, message="suspended"), []
    if manifest is None:
        return _failed(stage, FailureClass.POD_REJECTED, fault), []
    if blocker := _blocker(view, outdated):
        return _pending(stage, blocker), []
    entry = StageStatus(name=stage.name, phase="Running", digest=stage.digest, job=name, message="waiting for its pod")
    return entry, [CreateJob(stage.name, manifest)]


def _committed_by_job(view: _View, stage: PlannedStage, *, wanted: str) -> StageStatus | None:
    """The entry by the answer of a succeeded Job; of the wanted one first, of another only if its gates hold too."""
    jobs = sorted(_jobs_of(view, stage), key=lambda job: (job.name != wanted, job.created_at))
    for job in jobs:
        answer = _answer(view, stage, job)
        if answer is None:
            continue
        entry = committed_entry(
            stage,
            answer,
            job=job.name,
            attempt=_attempt(view, stage, job),
            started_at=job.created_at or None,
            finished_at=job.finished_at or None,
        )
        if job.name == wanted or surely_meets_gates(stage, entry):
            return entry
    return None


def _answer(view: _View, stage: PlannedStage, job: ObservedJob) -> Committed | None:
    if job.state is not JobState.SUCCEEDED:
        return None
    for pod in reversed(view.observed.pods_of(job.name)):
        answer = pod.end.answer if pod.end and pod.phase == "Succeeded" else None
        if isinstance(answer, Committed) and answer.digest == stage.digest:
            return answer
    return None


def _has_started(view: _View, job: ObservedJob) -> bool:
    """Also when its pod has succeeded and the Job controller has not looked yet: deleting it would lose the answer."""
    return any(pod.running or pod.phase in ("Running", "Succeeded") for pod in view.observed.pods_of(job.name))


def _running(view: _View, stage: PlannedStage, job: ObservedJob) -> StageStatus:
    suspend = view.plan.chain.spec.suspend
    pods = view.observed.pods_of(job.name)
    attempt = _attempt(view, stage, job)
    pod = next((pod for pod in reversed(pods) if not pod.is_over), None)
    before = _previous_entry(view, stage)
    same = before is not None and before.job == job.name and before.started_at == job.created_at
    progress = before.progress if before is not None and same else None
    if view.progress is not None and view.progress.stage == stage.name:
        progress = progress_status(view.progress)
    stuck = pod is not None and not pod.deleting and is_stuck(pod)
    return StageStatus(
        name=stage.name,
        phase="Suspended" if suspend else "Running",
        digest=stage.digest,
        job=job.name,
        attempt=attempt,
        started_at=job.created_at or None,
        progress=progress,
        message=_suspended_message(pod) if suspend else _running_message(job, pods, pod, attempt=attempt),
        failure_class=FailureClass.POD_REJECTED if stuck and not suspend else None,
    )


def _suspended_message(pod: ObservedPod | None) -> str:
    return "suspended; its state is saved" if pod is None else f"stopping: pod {pod.name} saves its state"


def _running_message(job: ObservedJob, pods: list[ObservedPod], pod: ObservedPod | None, *, attempt: int) -> str | None:
    notes = []
    if pod is None:
        notes.append("waiting for its pod")
    elif pod.deleting:
        notes.append(f"pod {pod.name} is stopping" + (f" ({pod.disrupted})" if pod.disrupted else ""))
    elif waiting := describe_waiting(pod):
        notes.append(waiting)
    counted = [p for p in pods if p.phase == "Failed" and not p.disrupted and p.end and p.end.exit_code != 75]
    if job.failed and counted:
        last = fit(diagnose_pod(counted[-1]).message, NOTE_BYTES)
        notes.append(f"attempt {attempt}, {job.failed} of {job.retries + 1} crashes allowed are used up: {last}")
    return "; ".join(notes) or None


def _finished_without_commit(view: _View, stage: PlannedStage, job: ObservedJob) -> tuple[StageStatus, list[Action]]:
    """The wanted Job is over and no answer of it says committed."""
    pods = view.observed.pods_of(job.name)
    if job.state is JobState.SUCCEEDED:
        if not any(pod.phase == "Succeeded" for pod in pods):
            # Its metrics went with its pod. A trainer that finds its stage committed tells them again in seconds.
            why = "its pod is gone, and with it what it answered"
            return _pending(stage, f"asking again: {why}"), [DeleteJob(job.name, job.uid, why=why)]
        sentence = (
            f"Job {job.name} ended with 0 and without a trainer's answer for this stage; "
            "is the image a distillchain trainer of this release?"
        )
        return _failed(stage, FailureClass.CRASHED, sentence, job=job, attempt=_attempt(view, stage, job)), []
    before = _previous_entry(view, stage)
    if not pods and before and before.phase == "Failed" and before.job == job.name:
        return before, []  # the pods are gone, what they said is known
    diagnosis = diagnose(job, pods)
    attempt = _attempt(view, stage, job)
    return _failed(stage, diagnosis.failure_class, diagnosis.message, job=job, attempt=attempt), []


def _blocker(view: _View, outdated: set[str]) -> str:
    """Why no Job may be made yet; empty when one may."""
    for job in view.observed.jobs:
        if job.deleting or job.name in outdated:
            return f"waiting for the pods of Job {job.name} to be gone"
        if not job.is_finished:
            return f"waiting for Job {job.name} of stage {job.stage} to end"
    left = next((pod for pod in view.observed.pods if not pod.is_over), None)
    return f"waiting for pod {left.name} to be gone" if left else ""


def _jobs_of(view: _View, stage: PlannedStage) -> list[ObservedJob]:
    wanted = (stage.name, digest_label(stage.digest))
    return [job for job in view.observed.jobs if (job.stage, job.digest) == wanted]


def _previous_entry(view: _View, stage: PlannedStage) -> StageStatus | None:
    """What status says of this very stage; None when it says something of another digest."""
    entry = view.previous.stage_named(stage.name)
    return entry if entry and entry.digest == stage.digest else None


def _attempt(view: _View, stage: PlannedStage, job: ObservedJob) -> int:
    """Pods of the Job so far, evicted and deleted ones included."""
    before = _previous_entry(view, stage)
    known = before.attempt if before and before.job == job.name and before.started_at == job.created_at else 0
    seen = job.noted_pods | {pod.short_uid for pod in view.observed.pods_of(job.name)}
    return max(known, job.active + job.failed + job.succeeded, len(seen))


def _pending(stage: PlannedStage, message: str) -> StageStatus:
    return StageStatus(name=stage.name, phase="Pending", digest=stage.digest, message=message)


def _failed(
    stage: PlannedStage,
    failure_class: FailureClass,
    message: str,
    *,
    job: ObservedJob | None = None,
    attempt: int = 0,
) -> StageStatus:
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
