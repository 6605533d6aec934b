"""What to do next for one chain, and what its status says: a pure function of what is observed.

Level-triggered: nothing is remembered but the status, so partially completed work is detected and completed. Strictly
sequential: the Job of a stage is created only when its teacher is committed and no other pod of the chain is left.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator import entries, starting
from distillchain_operator.actions import Action, CreateJob, CreatePart, Decision, DeleteJob, NotePods, SetSuspend
from distillchain_operator.gates import has_exports, surely_meets_gates
from distillchain_operator.group import build_network_policy, build_service
from distillchain_operator.jobs import NO_DEFAULTS, JobDefaults, MissingImage, build_job
from distillchain_operator.labels import digest_label
from distillchain_operator.observed import JobState, Observed, ObservedJob, ObservedPod
from distillchain_operator.policy import overdue_in
from distillchain_operator.status import build_chain_status, committed_entry
from distillchain_operator.view import View


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
        progress: newest progress line of the running pod, if it was read.
    """
    view = View(plan, observed, previous, defaults, progress, now)
    actions: list[Action] = [*_delete_outdated(view), *_follow_suspend(view), *_note_pods(view)]
    # `observed` still lists the Jobs that are deleted here; a step must not take one of them for the running Job.
    leaving = {action.name for action in actions if isinstance(action, DeleteJob)}
    stages: list[StageStatus] = []
    waits_for = ""
    for stage in plan.stages:
        if waits_for:
            # Later stages are judged now, not when their turn comes: by then status has the new generation, and a gate
            # that the edit tightened would no longer be noticed.
            stages.append(_later_entry(view, stage, waits_for))
            continue
        entry, more = _step(view, stage, leaving=leaving)
        stages.append(entry)
        actions.extend(more)
        if entry.phase != "Committed":
            waits_for = stage.name
    actions += _complete_groups(view, leaving={action.name for action in actions if isinstance(action, DeleteJob)})
    # The pods of a foreign Job do not stop when this chain is suspended, so they must not keep it `stopping`.
    pods_run = any(not pod.is_over and pod.job_uid not in observed.foreign_jobs for pod in observed.pods)
    status = build_chain_status(plan, stages, previous=previous, now=now, pods_run=pods_run)
    return Decision(tuple(actions), status, look_again_s=_look_again_s(view, status))


def running_pod(plan: Plan, observed: Observed) -> ObservedPod | None:
    """The pod whose log has the chain's progress: that of node 0."""
    # By labels, not by name: after an edit of the image the Job keeps running under its old name.
    wanted = {(stage.name, digest_label(stage.digest)) for stage in plan.stages}
    jobs = {job.uid for job in observed.jobs if (job.stage, job.digest) in wanted and not job.deleting}
    running = (pod for pod in observed.pods if pod.running and pod.is_leader and not pod.deleting)
    return next((pod for pod in running if pod.job_uid in jobs), None)


def _look_again_s(view: View, status: ChainStatus) -> float | None:
    # A node that disappeared sends no event, so the moment when its pod is overdue must be scheduled.
    left = [overdue_in(pod, now=view.now) for pod in view.observed.pods]
    # Nor does a deadline, or the end of a pause.
    moments = [starting.starts_by(view, s, job) for s in view.plan.stages for job in view.unfinished_jobs_of(s)]
    moments += [datetime.fromisoformat(entry.next_start_at) for entry in status.stages if entry.next_start_at]
    left += [moment - view.now for moment in moments if moment]
    return min((time.total_seconds() for time in left if time and time > timedelta()), default=None)


def _delete_outdated(view: View) -> list[DeleteJob]:
    """Unfinished Jobs of stages that the spec no longer has. Finished ones are kept for their logs."""
    return [
        DeleteJob(job.name, job.uid, why="the chain was edited and no longer has this stage")
        for job in view.observed.jobs
        if not job.is_finished and not job.deleting and not view.is_wanted(job)
    ]


def _follow_suspend(view: View) -> list[SetSuspend | DeleteJob]:
    """Suspends or resumes every unfinished Job of the spec's stages as the chain says.

    A Job whose pod has not started is deleted instead: the Job controller counts a pod that is stopped before it ran as
    a crash, and with `retries: 0` a suspended chain would fail. A Job that another controller suspended, as Kueue does
    with a Job in its queue, is resumed by that controller.
    """
    return [
        SetSuspend(job.name, job.uid, view.suspends)
        if not view.suspends or view.has_started(job)
        else DeleteJob(job.name, job.uid, why="the chain was suspended before its pod started")
        for job in view.observed.jobs
        if view.is_wanted(job)
        and not job.is_finished
        and not job.deleting
        # Only a suspension with our note is undone, or Kueue could never hold a Job back. A note is removed even if
        # another controller resumed the Job: otherwise the operator would resume what Kueue suspends next.
        and (not job.suspend_wanted if view.suspends else job.noted_suspended)
    ]


def _complete_groups(view: View, *, leaving: set[str]) -> list[CreatePart]:
    """The Services and NetworkPolicies that Jobs on several nodes lack; they are created again if they were deleted."""
    chain = view.plan.chain
    missing = []
    for job in view.observed.jobs:
        if not job.is_open_group or job.name in leaving:
            continue
        manifests = [build_service(job, namespace=chain.metadata.namespace, chain=chain.name)]
        if view.defaults.network_policies:
            # First, so that no other pod can reach the group before it is protected.
            manifests.insert(0, build_network_policy(job, namespace=chain.metadata.namespace, chain=chain.name))
        missing += [
            CreatePart(job.stage, manifest)
            for manifest in manifests
            if (manifest["kind"], job.uid) not in view.observed.parts
        ]
    return missing


def _note_pods(view: View) -> list[NotePods]:
    notes = []
    for job in view.observed.jobs:
        # Recorded while the pods are listed: an evicted pod is deleted and counted nowhere else.
        seen = view.pods_so_far(job)
        if seen != job.noted_pods and not job.is_finished and not job.deleting:
            notes.append(NotePods(job.name, job.uid, tuple(sorted(seen))))
    return notes


def _later_entry(view: View, stage: PlannedStage, waits_for: str) -> StageStatus:
    """A stage after the current one: it stays committed, finishes if it already runs, and else waits."""
    before = view.previous_entry(stage)
    if before is not None and _stays_committed(view, stage, before, job=_build(view, stage).name):
        return before
    running = next(iter(view.unfinished_jobs_of(stage)), None)
    if running is not None:  # the gate of an earlier stage was tightened while this one ran
        return entries.running(view, stage, running)
    return entries.pending(stage, f"waiting for {waits_for} to commit")


def _step(view: View, stage: PlannedStage, *, leaving: set[str]) -> tuple[StageStatus, list[Action]]:
    """Entry and actions of a stage whose predecessors are all committed; it may be committed too."""
    wanted = _build(view, stage)
    before = view.previous_entry(stage)
    damaged_at = _found_damaged_at(view, stage)
    if before is not None and not damaged_at and _stays_committed(view, stage, before, job=wanted.name):
        return before, []
    # A commit counts whatever the phase of the Job: a sidecar may fail, or the timeout expire, a moment after it.
    if committed := _committed_by_job(view, stage, wanted=wanted.name, after=damaged_at):
        return committed, []
    running = next((job for job in view.unfinished_jobs_of(stage) if job.name not in leaving), None)
    if running is not None:
        return _with_running_job(view, stage, running, wanted=wanted.name)
    held = starting.held_back(view, stage)
    # An upgrade of the operator gives Jobs other names. That alone must not retry a stage that failed.
    finished = view.observed.by_name.get(wanted.name) or _failed_before(view, before)
    if finished is not None and not finished.deleting and finished.name not in leaving:
        return _with_finished_job(view, stage, finished, damaged_at=damaged_at)
    # Below a failed Job, because a stage that failed stays Failed while the chain is suspended.
    if view.suspends:
        return StageStatus(name=stage.name, phase="Suspended", digest=stage.digest, message="suspended"), []
    # Below the Jobs that exist: an operator that lost its default image must not fail a stage that runs.
    if wanted.manifest is None:
        return entries.failed(stage, FailureClass.POD_REJECTED, wanted.fault), []
    blocked = entries.blocked(view, stage, leaving=leaving)
    # While the pods of the deleted Job stop, the reason for it is still what the user needs to know.
    if held and not (blocked and blocked.failure_class):
        return held, []
    last = view.previous_entry(stage)
    carried = {"missed_starts": last.missed_starts if last else None}
    if blocked:
        return blocked.model_copy(update=carried | {"next_start_at": held.next_start_at if held else None}), []
    # Running before the Job exists; if the API server refuses the Job, the controller corrects this entry.
    entry = StageStatus(
        name=stage.name, phase="Running", digest=stage.digest, job=wanted.name, message="waiting for its pod"
    )
    return entry.model_copy(update=carried), [CreateJob(stage.name, wanted.manifest)]


def _with_running_job(
    view: View, stage: PlannedStage, job: ObservedJob, *, wanted: str
) -> tuple[StageStatus, list[Action]]:
    if entry := starting.missed_start(view, stage, job):
        return entry, [DeleteJob(job.name, job.uid, why="a pod waited longer than pendingDeadline")]
    if _lost_its_leader(view, job):
        return _run_again(stage, job, why="the pod of node 0 was lost when others had finished")
    # Another name with the same digest is another image or placement. The result would be the same, so a pod that has
    # started is not stopped for it.
    if job.name == wanted or not wanted or view.has_started(job):
        return entries.running(view, stage, job), []
    # Its pod waits for a node, an image, a Secret or the end of a crash's backoff. The edit may be the correction, and
    # deleting a Job that has not started loses nothing.
    why = "the chain was edited before its pod started"
    return entries.pending(stage, f"replacing Job {job.name}"), [DeleteJob(job.name, job.uid, why=why)]


def _lost_its_leader(view: View, job: ObservedJob) -> bool:
    """Whether node 0 started again after another node had succeeded, which the Job controller does not start again."""
    ended = [pod.end.finished_at for pod in view.observed.pods_of(job) if pod.phase == "Succeeded" and pod.end]
    leader = next(reversed(view.leaders_of(job)), None)
    # A kubelet that did not see the end reports no time for it.
    return leader is not None and not leader.is_over and bool(ended) and leader.created_at > min(ended) > ""


def _with_finished_job(
    view: View, stage: PlannedStage, job: ObservedJob, *, damaged_at: str
) -> tuple[StageStatus, list[Action]]:
    """The wanted Job has finished, and none of its pods has answered that the stage is committed."""
    # Times of Kubernetes are RFC 3339 in UTC with whole seconds, so they compare as text.
    if damaged_at and job.created_at <= damaged_at:
        return _run_again(stage, job, why="the next stage found its checkpoint damaged")
    before = view.entry_of(stage, job)
    if before is not None and before.phase == "Failed":
        # Final for this Job. The pods that reported the reason may be deleted in the meantime.
        return before, []
    if not job.has_failed and not any(pod.phase == "Succeeded" for pod in view.leaders_of(job)):
        # The metrics were in the pod's answer. A trainer that finds its stage committed reports them within seconds.
        return _run_again(stage, job, why="its pod was deleted, and its result with it")
    return entries.failed_job(view, stage, job), []


def _run_again(stage: PlannedStage, job: ObservedJob, *, why: str) -> tuple[StageStatus, list[Action]]:
    return entries.pending(stage, f"running again: {why}"), [DeleteJob(job.name, job.uid, why=why)]


class _Wanted(NamedTuple):
    """The Job that the spec asks for; if none can be built, the reason."""

    manifest: dict[str, Any] | None = None
    name: str = ""
    fault: str = ""


def _build(view: View, stage: PlannedStage) -> _Wanted:
    try:
        manifest = build_job(view.plan.chain, stage, defaults=view.defaults)
    except MissingImage as error:
        return _Wanted(fault=str(error))
    return _Wanted(manifest, manifest["metadata"]["name"])


def _stays_committed(view: View, stage: PlannedStage, entry: StageStatus, *, job: str) -> bool:
    """Whether a stage that is committed by its status needs nothing; an edit may tighten a gate or add an export."""
    if entry.phase != "Committed" or not has_exports(stage, entry):
        return False
    # Without an edit the metrics are not compared: they are rounded, so a metric equal to its gate would run again
    # after each upgrade of the operator. A Job of the same name had the same gates, which are part of its work order.
    return not view.was_edited or entry.job == job or surely_meets_gates(stage, entry)


def _found_damaged_at(view: View, stage: PlannedStage) -> str:
    """The time when the next stage failed because this one's checkpoint is damaged or missing; empty otherwise.

    Also empty until the user retries that failure by deleting its Job. Then the status of this stage is not trusted:
    its trainer verifies the checkpoint, or trains again if the user has deleted the manifest.
    """
    following = next((later for later in view.plan.stages if later.teacher_digest == stage.digest), None)
    entry = view.previous_entry(following) if following else None
    if entry is None or entry.phase != "Failed" or entry.failure_class is not FailureClass.CHECKPOINT_CORRUPT:
        return ""
    job = view.observed.by_name.get(entry.job or "")
    return (entry.finished_at or "") if job is None or job.deleting else ""


def _failed_before(view: View, before: StageStatus | None) -> ObservedJob | None:
    """The failed Job of a stage that was not edited since, also when this operator would name it differently."""
    if before is None or before.phase != "Failed" or before.job is None or view.was_edited:
        return None
    job = view.observed.by_name.get(before.job)
    return job if job is not None and job.state is JobState.FAILED else None


def _committed_by_job(view: View, stage: PlannedStage, *, wanted: str, after: str) -> StageStatus | None:
    """The entry from the answer of a Job's trainer: of the wanted Job first, of another only if its gates are met too.

    Args:
        after: a Job created at or before this moment does not count.
    """
    # A Job of another name may have run under other gates, so it commits the stage only if it surely meets the present
    # ones.
    jobs = sorted(view.jobs_of(stage), key=lambda job: (job.name != wanted, job.created_at))
    for job in jobs:
        answered = view.answer_of(stage, job)
        if answered is None or job.deleting or (after and job.created_at <= after):
            continue
        answer, pod = answered
        if answer.reused and answer.attempt.startswith(tuple(view.pods_so_far(job))):
            # An earlier pod of this Job committed the stage and was lost before its answer was read.
            answer = answer.model_copy(update={"reused": False})
        entry = committed_entry(
            stage,
            answer,
            job=job.name,
            attempt=view.attempt(stage, job),
            started_at=job.created_at or None,
            finished_at=(pod.end.finished_at if pod.end else "") or job.finished_at or None,
        )
        if job.name == wanted or (surely_meets_gates(stage, entry) and has_exports(stage, entry)):
            return entry
    return None
