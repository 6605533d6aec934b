"""Which of the Jobs that may start do start: by priority, while fewer than `max_parallel_jobs` run. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import Admission, StagePhase, StageStatus
from distillchain_api.wire.answer import fit
from distillchain_operator.decide.actions import CreateJob
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.labels import digest_label
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod
from distillchain_operator.jobs.policy import describe_pod


@dataclass(frozen=True)
class Wait:
    """Why a Job may not be created yet."""

    message: str
    failure_class: FailureClass | None = None
    """Set if a pod is in the way that does not end without the user."""
    admission: Admission | None = None
    """Set if the chain waits for other chains."""


@dataclass(frozen=True)
class Start:
    """A Job that may be created as soon as it may run.

    Attributes:
        started: the entry of its stage once the Job is created.
        waiting: the entry while it is not.
        is_held: `waiting` already says why: its pause is not over.
        priority: a lower number starts first.
        refused: the entry that says why the API server refused it the last time; others then go first.
    """

    stage: PlannedStage
    manifest: dict[str, Any]
    started: StageStatus
    waiting: StageStatus
    priority: int
    is_held: bool = False
    is_export: bool = False
    refused: StageStatus | None = None

    @property
    def name(self) -> str:
        """Of the Job."""
        return str(self.manifest["metadata"]["name"])

    @property
    def action(self) -> CreateJob:
        """Creates the Job."""
        return CreateJob(self.stage.name, self.manifest, self.is_export)

    def after(self, wait: Wait) -> StageStatus:
        """The entry while something is in the way."""
        # Why it was refused is still what the user has to correct. Two refused ones that took turns would each change
        # the status, and each change is an event that starts the next look.
        if self.refused is not None and not wait.failure_class:
            return self.refused
        # While the pods of a deleted Job stop, the reason why they do not is what the user needs to know.
        if self.is_held and not wait.failure_class:
            return self.waiting
        if self.is_export and self.waiting.missing_export is not None:
            missing = self.waiting.missing_export.model_copy(update={"message": wait.message})
            return self.waiting.model_copy(update={"missing_export": missing})
        fields = {"message": wait.message, "failure_class": wait.failure_class, "admission": wait.admission}
        return self.waiting.model_copy(update=fields)


class Scheduled(NamedTuple):
    """What becomes of a start: the entry of its stage, and the action if its Job is created now."""

    entry: StageStatus
    create: CreateJob | None = None
    waits_for_turn: bool = False


@dataclass(frozen=True)
class _Slot:
    """What uses one of the Jobs that the chain may have: a Job, or pods that a Job left.

    Attributes:
        stage: its vertex; empty if that is not known.
        digest: of the vertex, in the form of the label; empty for pods without a Job.
        what: what a Job waits for that may not start because of it.
        pods: those that have to end.
        is_stray: no Job controls them, or no chain their Job, so nothing ends them but the user.
    """

    stage: str
    what: str
    pods: Sequence[ObservedPod]
    is_stray: bool = False
    is_export: bool = False
    digest: str = ""


def schedule(
    view: View, starts: Sequence[Start], *, leaving: set[str], chain: Sequence[StagePhase]
) -> Iterator[Scheduled]:
    """What becomes of each start.

    Args:
        leaving: names of Jobs that this reconcile deletes.
        chain: phases of the stages of the chain, without what is beside it.
    """
    slots = [*_slots_of_jobs(view, leaving), *_slots_of_pods(view)]
    beside = {vertex.name for vertex in view.plan.evidence}
    # Sorting is stable, so starts of one priority keep the order of the plan.
    for start in sorted(starts, key=lambda start: _order(view, start)):
        # Two pods of one stage would write the same state, however many Jobs may run. It may have been renamed.
        name, digest = start.stage.name, digest_label(start.stage.digest)
        own = next((slot for slot in slots if slot.stage == name or slot.digest == digest), None)
        # A stage of the chain does not wait for an export.
        waits_for_exports = start.is_export or start.stage.is_evidence
        counted = [slot for slot in slots if waits_for_exports or not slot.is_export]
        rival = own or (counted[0] if len(counted) >= view.plan.max_parallel_jobs else None)
        wait = None if rival is None else _wait_for(view, rival)
        if wait is None and start.stage.is_evidence:
            wait = _wait_for_chain(view, chain, used=sum(slot.stage in beside for slot in slots))
        if wait is None and not (start.is_held or start.is_export):
            others = view.waits_for_others(start.stage)
            wait = Wait(others[0], admission=others[1]) if others else None
        if wait is not None:
            is_in_line = wait.admission == "WaitingForTurn"
            # Each try of a Job that is refused takes the turn for a moment. The others must not be written for it.
            entry = view.previous_entry(start.stage) if is_in_line and start.name in view.refused else None
            yield Scheduled(entry or start.after(wait), waits_for_turn=is_in_line)
        elif start.is_held:
            yield Scheduled(start.waiting)
        else:
            what = f"Job {start.name} of stage {start.stage.name} to finish"
            slots.append(_Slot(name, what, (), is_export=start.is_export, digest=digest))
            yield Scheduled(start.started, start.action)


def _order(view: View, start: Start) -> tuple[bool, bool, int]:
    """A Job that was refused goes behind all others, and behind other refused ones until it may be tried again."""
    return start.name in view.backing_off, start.refused is not None, start.priority


def _wait_for_chain(view: View, chain: Sequence[StagePhase], *, used: int) -> Wait | None:
    """Why a vertex beside the chain waits although a slot is free; None if it may start.

    Until the chain has finished, one slot is kept for its next stage. So with one slot the controls start after it.

    Args:
        used: slots of other vertices beside the chain.
    """
    if all(phase == "Committed" for phase in chain):
        return None
    if "Failed" in chain:
        return Wait("waiting for the chain, which has failed: there is no student to compare")
    return Wait("waiting for the chain to finish") if used >= view.plan.max_parallel_jobs - 1 else None


def _slots_of_jobs(view: View, leaving: set[str]) -> Iterator[_Slot]:
    for job in view.observed.jobs:
        pods = [pod for pod in view.observed.pods_of(job) if not pod.is_over]
        # A deleted Job is listed until its pods are gone (cluster.delete_job).
        if job.deleting or job.name in leaving:
            # A pod that is not deleted yet may wait for something, but it is about to go.
            stopping = [pod for pod in pods if pod.deleting]
            what = f"the pods of Job {job.name} to terminate" if pods or not job.finalizers else _kept_job(job)
            yield _Slot(job.stage, what, stopping, digest=job.digest)
        elif not job.is_finished and not view.is_over(job):
            what = f"Job {job.name} of stage {job.stage} to finish"
            yield _Slot(job.stage, what, pods, is_export=job.exports_only, digest=job.digest)


def _kept_job(job: ObservedJob) -> str:
    """What a stage waits for after the last pod of a deleted Job has ended."""
    patch = f"""kubectl patch job {job.name} --type=merge -p '{{"metadata":{{"finalizers":null}}}}'"""
    return f"the controller of finalizer {', '.join(job.finalizers)} to let Job {job.name} go; if it is gone: {patch}"


def _slots_of_pods(view: View) -> Iterator[_Slot]:
    """Pods whose Job has finished or is gone: a trainer that still stops uses the GPU and the store."""
    counted = {job.uid for job in view.observed.jobs if job.deleting or not (job.is_finished or view.is_over(job))}
    left: dict[tuple[str, str], list[ObservedPod]] = {}
    for pod in view.observed.pods:
        if not pod.is_over and pod.job_uid not in counted:
            left.setdefault((pod.job_uid, pod.stage), []).append(pod)
    for (uid, stage), pods in left.items():
        what = f"pod {pods[0].name} of Job {pods[0].job} to terminate"
        is_ownerless = uid in view.observed.ownerless_jobs
        if uid in view.observed.foreign_jobs:
            what = foreign_job(pods[0].job, view.plan.chain.name, is_ownerless=is_ownerless)
        elif not uid:
            # It may be a trainer whose Job was deleted with --cascade=orphan.
            name = pods[0].name
            what = f"pod {name} to be deleted: no Job controls it; if it is not needed: kubectl delete pod {name}"
        yield _Slot(stage, what, pods, is_stray=is_ownerless or not uid)


def foreign_job(job: str, chain: str, *, is_ownerless: bool) -> str:
    """What a stage waits for while a Job of another owner is in its way, and how to remove it.

    Args:
        is_ownerless: nothing controls it, as after a chain was deleted with --cascade=orphan.
    """
    why = "no chain controls it" if is_ownerless else f"it belongs to another owner, such as a deleted chain {chain}"
    return f"Job {job} to be deleted: {why}; if it is not needed: kubectl delete job {job}"


def _wait_for(view: View, slot: _Slot) -> Wait:
    """What the pods of a slot do, and whether they end without the user."""
    found = [note for pod in slot.pods if (note := describe_pod(pod, now=view.now))]
    # One pod that needs the user holds up the stage, whatever the others do.
    note = next((note for note in found if note.needs_user), found[0] if found else None)
    is_stuck = slot.is_stray or (note is not None and note.needs_user)
    message = f"waiting for {slot.what}" + (f": {note.message}" if note else "")
    return Wait(fit(message), FailureClass.POD_REJECTED if is_stuck else None)


def refusal(view: View, entry: StageStatus | None, *, job: str) -> StageStatus | None:
    """The entry that says why the API server refused the Job of a stage or of its export the last time, if it did."""
    # An edit may be the remedy.
    if entry is None or view.was_edited:
        return None
    missing = entry.missing_export
    is_refused = (entry.phase == "Failed" and entry.job is None) or (
        missing is not None and missing.phase == "Failed" and missing.job is None
    )
    return entry if is_refused or job in view.backing_off else None
