"""What to do next for one chain, and what to say of it: a pure function of what is observed.

Level-triggered: nothing is remembered but the status, and whatever was done half is seen and done whole. Strictly
sequential: a stage's Job is made only when its teacher is committed and no other pod of the chain is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from distillchain_api.failures import EXIT_COMMITTED, FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.wire.answer import Committed, Progress, fit
from distillchain_operator.gates import surely_meets_gates
from distillchain_operator.jobs import NO_DEFAULTS, JobDefaults, build_job
from distillchain_operator.labels import digest_label
from distillchain_operator.observed import JobState, Observed, ObservedJob, ObservedPod
from distillchain_operator.podtemplate import BadPodTemplate
from distillchain_operator.policy import (
    PodNote,
    describe_pod,
    diagnose,
    diagnose_pod,
    lasts_long,
    overdue_in,
)
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
    look_again_s: float | None = None
    """In which time alone will change what is to be said."""


@dataclass(frozen=True)
class _View:
    plan: Plan
    observed: Observed
    previous: ChainStatus
    defaults: JobDefaults
    progress: Progress | None
    now: datetime


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
    view = _View(plan, observed, previous, defaults, progress, now)
    entries: list[StageStatus] = []
    actions: list[Action] = [*_delete_outdated(view), *_follow_suspend(view), *_note_pods(view)]
    leaving = {action.name for action in actions if isinstance(action, DeleteJob)}
    waits_for = ""
    for stage in plan.stages:
        if waits_for:
            entries.append(_later_entry(view, stage, waits_for))
            continue
        entry, made = _step(view, stage, leaving=leaving)
        entries.append(entry)
        actions.extend(made)
        if entry.phase != "Committed":
            waits_for = stage.name
    pods_run = any(not pod.is_over and pod.job_uid not in observed.foreign_jobs for pod in observed.pods)
    status = build_chain_status(plan, entries, previous=previous, now=now, pods_run=pods_run)
    return Decision(tuple(actions), status, look_again_s=_look_again_s(view))


def running_pod(plan: Plan, observed: Observed) -> ObservedPod | None:
    """The pod whose log has the chain's progress."""
    wanted = {(stage.name, digest_label(stage.digest)) for stage in plan.stages}
    jobs = {job.uid for job in observed.jobs if (job.stage, job.digest) in wanted and not job.deleting}
    return next((pod for pod in observed.pods if pod.running and pod.job_uid in jobs and not pod.deleting), None)


def _look_again_s(view: _View) -> float | None:
    left = [overdue_in(pod, now=view.now) for pod in view.observed.pods]
    return min((time.total_seconds() for time in left if time and time > timedelta()), default=None)


def _delete_outdated(view: _View) -> list[DeleteJob]:
    """Unfinished Jobs that make something the chain no longer asks for. Finished ones stay to be read."""
    wanted = {(stage.name, digest_label(stage.digest)) for stage in view.plan.stages}
    return [
        DeleteJob(job.name, job.uid, why="the chain was edited: this stage is no longer asked for")
        for job in view.observed.jobs
        if not job.is_finished and not job.deleting and (job.stage, job.digest) not in wanted
    ]


def _follow_suspend(view: _View) -> list[SetSuspend | DeleteJob]:
    """What the chain says of suspending goes for every unfinished Job that it still asks for.

    A Job whose pod has not started goes away instead: the Job controller counts a pod that is stopped before it ran as
    a crash, and with `retries: 0` a suspended chain would fail. What another controller has suspended, as Kueue does
    with a Job that waits in its queue, is that one's to resume.
    """
    wanted = {(stage.name, digest_label(stage.digest)) for stage in view.plan.stages}
    suspend = view.plan.chain.spec.suspend
    return [
        SetSuspend(job.name, job.uid, suspend)
        if not suspend or _has_started(view, job)
        else DeleteJob(job.name, job.uid, why="the chain was suspended before its pod started")
        for job in view.observed.jobs
        if (job.stage, job.digest) in wanted
        and not job.is_finished
        and not job.deleting
        and (not job.suspend_wanted if suspend else job.noted_suspended)
    ]


def _note_pods(view: _View) -> list[NotePods]:
    noted = []
    for job in view.observed.jobs:
        seen = job.noted_pods | {pod.short_uid for pod in view.observed.pods_of(job)}
        if seen != job.noted_pods and not job.is_finished and not job.deleting:
            noted.append(NotePods(job.name, job.uid, tuple(sorted(seen))))
    return noted


def _later_entry(view: _View, stage: PlannedStage, waits_for: str) -> StageStatus:
    """A stage behind the current one: what was committed stays so, what runs is left to end, the rest waits."""
    before = _previous_entry(view, stage)
    if before is not None and _stays_committed(view, stage, before, job=_built(view, stage).name):
        return before
    running = next((job for job in _jobs_of(view, stage) if not job.is_finished and not job.deleting), None)
    if running is not None:  # an earlier gate was tightened while it ran
        return _running(view, stage, running)
    return _pending(stage, f"waiting for {waits_for} to commit")


def _step(view: _View, stage: PlannedStage, *, leaving: set[str]) -> tuple[StageStatus, list[Action]]:
    """The entry of the first stage that is not known to be committed, or of one that is."""
    manifest, name, fault = _built(view, stage)
    before = _previous_entry(view, stage)
    damaged_at = _found_damaged_at(view, stage)
    if before is not None and not damaged_at and _stays_committed(view, stage, before, job=name):
        return before, []
    if committed := _committed_by_job(view, stage, wanted=name, after=damaged_at):
        return committed, []

    unfinished = [job for job in _jobs_of(view, stage) if not job.is_finished and not job.deleting]
    running = next((job for job in unfinished if job.name not in leaving), None)
    if running is not None and (running.name == name or not name or _has_started(view, running)):
        return _running(view, stage, running), []
    if running is not None:
        # Its pod waits for a node, an image, a Secret, or for the end of a crash's backoff: perhaps the very thing the
        # edit mends, and nothing but a start is lost.
        why = "the chain was edited before its pod started"
        return _pending(stage, f"replacing Job {running.name}"), [DeleteJob(running.name, running.uid, why=why)]
    finished = view.observed.by_name.get(name) or _failed_before(view, before)
    if finished is not None and not finished.deleting and finished.name not in leaving:
        if damaged_at and finished.created_at <= damaged_at:
            why = "the next stage found its checkpoint damaged"
            return _pending(stage, f"asking again: {why}"), [DeleteJob(finished.name, finished.uid, why=why)]
        return _finished_without_commit(view, stage, finished)
    if view.plan.chain.spec.suspend:
        return StageStatus(name=stage.name, phase="Suspended", digest=stage.digest, message="suspended"), []
    if manifest is None:
        return _failed(stage, FailureClass.POD_REJECTED, fault), []
    if blocked := _blocked(view, stage, leaving=leaving):
        return blocked, []
    entry = StageStatus(name=stage.name, phase="Running", digest=stage.digest, job=name, message="waiting for its pod")
    return entry, [CreateJob(stage.name, manifest)]


class _Built(NamedTuple):
    """The Job that a stage asks for; without one, what is wrong with its pod template."""

    manifest: dict[str, Any] | None = None
    name: str = ""
    fault: str = ""


def _built(view: _View, stage: PlannedStage) -> _Built:
    try:
        manifest = build_job(view.plan.chain, stage, defaults=view.defaults)
    except BadPodTemplate as error:
        return _Built(fault=str(error))
    return _Built(manifest, manifest["metadata"]["name"])


def _stays_committed(view: _View, stage: PlannedStage, entry: StageStatus, *, job: str) -> bool:
    """Whether a stage that status calls committed needs nothing; an edit may have tightened a gate."""
    return entry.phase == "Committed" and (
        not _was_edited(view) or entry.job == job or surely_meets_gates(stage, entry)
    )


def _was_edited(view: _View) -> bool:
    """Since status was written. An operator of another release, or with another default image, would call Jobs
    differently, and that alone is no reason to do anything again."""
    return view.previous.observed_generation != view.plan.chain.metadata.generation


def _found_damaged_at(view: _View, stage: PlannedStage) -> str:
    """When the next stage failed because this one's checkpoint is damaged or gone, and is to be tried again: its Job
    was deleted. Empty otherwise.

    Then what status says of this stage is not believed: its trainer verifies the checkpoint, or makes it anew where a
    person has deleted the manifest.
    """
    following = next((later for later in view.plan.stages if later.teacher_digest == stage.digest), None)
    entry = _previous_entry(view, following) if following else None
    if entry is None or entry.phase != "Failed" or entry.failure_class is not FailureClass.CHECKPOINT_CORRUPT:
        return ""
    job = view.observed.by_name.get(entry.job or "")
    return (entry.finished_at or "") if job is None or job.deleting else ""


def _failed_before(view: _View, before: StageStatus | None) -> ObservedJob | None:
    """The failed Job of a stage that nobody edited since, by whatever name."""
    if before is None or before.phase != "Failed" or before.job is None or _was_edited(view):
        return None
    job = view.observed.by_name.get(before.job)
    return job if job is not None and job.state is JobState.FAILED else None


def _committed_by_job(view: _View, stage: PlannedStage, *, wanted: str, after: str) -> StageStatus | None:
    """The entry by the answer of a Job's trainer; of the wanted one first, of another only if its gates hold too.

    Args:
        after: a Job made at or before this moment does not count.
    """
    jobs = sorted(_jobs_of(view, stage), key=lambda job: (job.name != wanted, job.created_at))
    for job in jobs:
        answered = _answer(view, stage, job)
        if answered is None or job.deleting or (after and job.created_at <= after):
            continue
        answer, pod = answered
        if answer.reused and answer.attempt.startswith(tuple(_pods_so_far(view, job))):
            # A pod of this very Job has committed it and was lost before it was heard.
            answer = answer.model_copy(update={"reused": False})
        entry = committed_entry(
            stage,
            answer,
            job=job.name,
            attempt=_attempt(view, stage, job),
            started_at=job.created_at or None,
            finished_at=(pod.end.finished_at if pod.end else "") or job.finished_at or None,
        )
        if job.name == wanted or surely_meets_gates(stage, entry):
            return entry
    return None


def _answer(view: _View, stage: PlannedStage, job: ObservedJob) -> tuple[Committed, ObservedPod] | None:
    """What a trainer of the Job said when it had committed, however its pod and the Job ended: a sidecar may fail, or
    the time be up, a moment later."""
    for pod in reversed(view.observed.pods_of(job)):
        answer = pod.end.answer if pod.end and pod.end.exit_code == EXIT_COMMITTED else None
        if isinstance(answer, Committed) and answer.digest == stage.digest:
            return answer, pod
    return None


def _has_started(view: _View, job: ObservedJob) -> bool:
    """Also when its pod has succeeded and the Job controller has not looked yet: deleting it would lose the answer."""
    return any(pod.running or pod.phase in ("Running", "Succeeded") for pod in view.observed.pods_of(job))


def _running(view: _View, stage: PlannedStage, job: ObservedJob) -> StageStatus:
    suspend = view.plan.chain.spec.suspend
    pods = view.observed.pods_of(job)
    attempt = _attempt(view, stage, job)
    pod = next((pod for pod in reversed(pods) if not pod.is_over), None)
    before = _entry_of(view, stage, job)
    progress = before.progress if before else None
    if view.progress is not None and view.progress.stage == stage.name:
        progress = progress_status(view.progress)
    # Of a suspended Job it matters only whether its pod goes.
    note = describe_pod(pod, now=view.now) if pod and (pod.deleting or not suspend) else None
    message = _running_message(view, job, pods, note, attempt=attempt)
    if suspend and not (note and note.needs_person):
        message = _suspended_message(pod)
    return StageStatus(
        name=stage.name,
        phase="Suspended" if suspend else "Running",
        digest=stage.digest,
        job=job.name,
        attempt=attempt,
        started_at=job.created_at or None,
        progress=progress,
        message=message,
        failure_class=FailureClass.POD_REJECTED if note and note.needs_person else None,
    )


def _suspended_message(pod: ObservedPod | None) -> str:
    return (
        "suspended; it goes on from its last saved state"
        if pod is None
        else f"stopping: pod {pod.name} saves its state"
    )


def _running_message(
    view: _View, job: ObservedJob, pods: list[ObservedPod], note: PodNote | None, *, attempt: int
) -> str | None:
    notes = [note.message] if note else []
    if job.suspend_wanted and not job.noted_suspended:
        patch = f"""kubectl patch job {job.name} -p '{{"spec":{{"suspend":false}}}}'"""
        notes.append(f"Job {job.name} is suspended by another (such as Kueue), who resumes it; by hand: {patch}")
    elif all(pod.is_over for pod in pods):
        late = not pods and lasts_long(job.started_at, now=view.now)
        notes.append("waiting for its pod" + (f"; kubectl describe job {job.name} says why" if late else ""))
    notes.extend(_replaced(job, pods, attempt=attempt))
    return "; ".join(notes) or None


def _replaced(job: ObservedJob, pods: list[ObservedPod], *, attempt: int) -> list[str]:
    """How often pods of the Job were replaced, and why; nothing of a first attempt that goes well."""
    crashed = [p for p in pods if p.phase == "Failed" and not p.disrupted and p.end and p.end.exit_code != 75]
    over = [pod for pod in pods if pod.is_over]
    notes = []
    if job.failed and crashed:
        last = fit(diagnose_pod(crashed[-1]).message, NOTE_BYTES)
        notes.append(f"attempt {attempt}, {job.failed} of {job.retries + 1} crashes allowed are used up: {last}")
    elif attempt > 1:
        notes.append(f"attempt {attempt}")
    if over and over[-1].disrupted:
        why = over[-1].rejected or over[-1].disrupted
        notes.append(fit(f"the last pod was thrown out of node {over[-1].node}: {why}", NOTE_BYTES))
    return notes


def _finished_without_commit(view: _View, stage: PlannedStage, job: ObservedJob) -> tuple[StageStatus, list[Action]]:
    """The wanted Job is over and no answer of it says committed."""
    before = _entry_of(view, stage, job)
    if before is not None and before.phase == "Failed":
        return before, []  # final for this very Job: of its pods, which told it, fewer and fewer are left
    pods = view.observed.pods_of(job)
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
    never_ran = before is not None and before.phase == "Running" and before.progress is None
    diagnosis = diagnose(job, pods, waited_for=(before.message or "") if before and never_ran else "")
    attempt = _attempt(view, stage, job)
    failed = _failed(stage, diagnosis.failure_class, diagnosis.message, job=job, attempt=attempt)
    # How far it came: the pods of a Job whose time was up are deleted, and their logs with them.
    return failed.model_copy(update={"progress": before.progress if before else None}), []


def _blocked(view: _View, stage: PlannedStage, *, leaving: set[str]) -> StageStatus | None:
    """The entry of a stage whose Job may not be made yet; None when it may."""
    for job in view.observed.jobs:
        pods = [pod for pod in view.observed.pods_of(job) if not pod.is_over]
        if job.deleting or job.name in leaving:
            gone = [pod for pod in pods if pod.deleting]  # what the others lack does not matter any more
            return _waits_for(view, stage, f"the pods of Job {job.name} to be gone", gone)
        if not job.is_finished:
            return _waits_for(view, stage, f"Job {job.name} of stage {job.stage} to end", pods)
    pods = [pod for pod in view.observed.pods if not pod.is_over]
    if not pods:
        return None
    what = f"pod {pods[0].name} of Job {pods[0].job} to be gone"
    if pods[0].job_uid in view.observed.foreign_jobs:
        owner = f"its owner is another, such as an earlier chain {view.plan.chain.name}"
        what = f"Job {pods[0].job} to be gone: {owner}; if nobody needs it: kubectl delete job {pods[0].job}"
    return _waits_for(view, stage, what, pods)


def _waits_for(view: _View, stage: PlannedStage, what: str, pods: list[ObservedPod]) -> StageStatus:
    """The entry of a stage that waits for the end of these pods, and whether they will come to it by themselves."""
    found = [note for pod in pods if (note := describe_pod(pod, now=view.now))]
    note = next((note for note in found if note.needs_person), found[0] if found else None)
    return StageStatus(
        name=stage.name,
        phase="Pending",
        digest=stage.digest,
        message=f"waiting for {what}" + (f": {note.message}" if note else ""),
        failure_class=FailureClass.POD_REJECTED if note and note.needs_person else None,
    )


def _jobs_of(view: _View, stage: PlannedStage) -> list[ObservedJob]:
    wanted = (stage.name, digest_label(stage.digest))
    return [job for job in view.observed.jobs if (job.stage, job.digest) == wanted]


def _previous_entry(view: _View, stage: PlannedStage) -> StageStatus | None:
    """What status says of this very stage; None when it says something of another digest."""
    entry = view.previous.stage_named(stage.name)
    return entry if entry and entry.digest == stage.digest else None


def _entry_of(view: _View, stage: PlannedStage, job: ObservedJob) -> StageStatus | None:
    """What status says of this very Job; one of its name may have been there before."""
    entry = _previous_entry(view, stage)
    return entry if entry and entry.job == job.name and entry.started_at == job.created_at else None


def _attempt(view: _View, stage: PlannedStage, job: ObservedJob) -> int:
    """Pods of the Job so far, evicted and deleted ones included."""
    before = _entry_of(view, stage, job)
    known = before.attempt if before else 0
    return max(known, job.active + job.failed + job.succeeded, len(_pods_so_far(view, job)))


def _pods_so_far(view: _View, job: ObservedJob) -> frozenset[str]:
    """Short UIDs; a trainer's attempt begins with the UID of its pod."""
    return job.noted_pods | {pod.short_uid for pod in view.observed.pods_of(job)}


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
