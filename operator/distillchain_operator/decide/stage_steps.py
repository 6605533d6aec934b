"""What one stage does next: it stays committed, follows its Job, fails, waits, or wants its Job to start. Pure."""

from __future__ import annotations

from dataclasses import replace

from distillchain_api.failures import FailureClass
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import StageStatus
from distillchain_api.wire.answer import fit
from distillchain_operator.decide import deadlines, entries, restarts, starting
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.decide.commits import (
    committed_by_job,
    found_damaged_at,
    is_outdated,
    needless_pass,
    runs_in_vain,
    stays_committed,
)
from distillchain_operator.decide.failures_kept import (
    RETRIED,
    deletions_for_retry,
    failed_jobs,
    is_retried,
    jobs_to_retry,
    stays_failed,
)
from distillchain_operator.decide.late_exports import export_step
from distillchain_operator.decide.pauses import Pause, lasts
from distillchain_operator.decide.peers import Peer
from distillchain_operator.decide.scheduling import Start, refusal
from distillchain_operator.decide.step import Step
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.kueue import is_held
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.jobs.wanted_jobs import WantedJob
from distillchain_operator.status.chain_status import timestamp

RETRIES_USED_UP = ("BackoffLimitExceeded", "FailedIndexes")  # reasons of a failed Job
DAMAGED = "the next stage found its checkpoint damaged"
TRAINED_AGAIN = "the user asked for it"
CHAIN_TIMED_OUT = "the chain ran longer than its timeout"


def waiting_step(view: View, stage: PlannedStage, waits_for: str, *, leaving: set[str]) -> Step:
    """A stage that needs another one: it stays committed, finishes if it already runs, and else waits."""
    if stage.name in view.trained_again:
        return again_step(view, stage, leaving=leaving)
    before = view.previous_entry(stage)
    damaged_at = found_damaged_at(view, stage)
    if before is not None and not damaged_at and stays_committed(view, stage, before, job=view.wanted.of(stage).name):
        return _committed_step(view, stage, before, leaving=leaving)
    running = next(iter(view.training_jobs_of(stage)), None)
    if running is not None:  # the gate of an earlier stage was tightened while this one ran
        why = None if running.name in leaving else _missed_deadline(view, stage, running)
        if why is None:
            return Step(entries.running(view, stage, running))
        # No failure: the chain has to train the earlier stage first.
        return Step(_waiting(stage, waits_for), (DeleteJob(running.name, running.uid, why=why),))
    if not damaged_at and (needless := needless_pass(view, stage)):
        return Step(needless)
    return Step(_waiting(stage, waits_for), _deletions_before_next(view, stage, damaged_at, leaving=leaving))


def _deletions_before_next(
    view: View, stage: PlannedStage, damaged_at: str, *, leaving: set[str]
) -> tuple[DeleteJob, ...]:
    """Deletes the Jobs that would commit or fail the stage again, although the user wants to try it again.

    The request of the user, and the entry that says that the checkpoint is damaged, hold for this look only.
    """
    old = [job for job in view.jobs_of(stage) if is_outdated(job, damaged_at)]
    old = [job for job in old if not job.deleting and job.name not in leaving]
    deletions = tuple(DeleteJob(job.name, job.uid, why=DAMAGED, asked_once=True) for job in old)
    if not is_retried(view, stage.name):
        return deletions
    leaving = leaving | {job.name for job in old}
    return (*deletions, *deletions_for_retry(view, stage.name, jobs_to_retry(view, stage), leaving=leaving))


def _waiting(stage: PlannedStage, waits_for: str) -> StageStatus:
    return entries.pending(stage, f"waiting for {waits_for} to commit")


def _missed_deadline(view: View, stage: PlannedStage, job: ObservedJob) -> str | None:
    """Which deadline a running Job has missed whose stage waits for an earlier one; None if none."""
    if deadlines.failed_by_chain_timeout(view, stage):
        return CHAIN_TIMED_OUT
    missed = starting.missed_start(view, stage, job, missed=0)
    why = deadlines.timed_out(view, stage, job) or deadlines.stopped_progressing(view, stage, job)
    return why or (missed.why if missed else None)


def ready_step(view: View, stage: PlannedStage, *, leaving: set[str]) -> Step:
    """A stage that has all that it needs; it may be committed too.

    Args:
        leaving: names of Jobs that this reconcile deletes.
    """
    if stage.name in view.trained_again:
        return again_step(view, stage, leaving=leaving)
    wanted = view.wanted.of(stage)
    before = view.previous_entry(stage)
    damaged_at = found_damaged_at(view, stage)
    if before is not None and not damaged_at and stays_committed(view, stage, before, job=wanted.name):
        return _committed_step(view, stage, before, leaving=leaving)
    # A commit counts whatever the phase of the Job: a sidecar may fail, or the timeout expire, a moment after it.
    if committed := committed_by_job(view, stage, wanted=wanted.name, after=damaged_at):
        return _committed_step(view, stage, committed, leaving=leaving)
    running = next((job for job in view.training_jobs_of(stage) if job.name not in leaving), None)
    late = deadlines.failed_by_chain_timeout(view, stage)
    if running is not None and late is not None:
        stopped = DeleteJob(running.name, running.uid, why=CHAIN_TIMED_OUT)
        return Step(_with_progress(view, stage, late, running), (stopped,))
    if running is not None:
        return _with_running_job(view, stage, running, wanted=wanted.name)
    if not damaged_at and (needless := needless_pass(view, stage)):
        return Step(needless)
    if deletions := _deletions_before_next(view, stage, damaged_at, leaving=leaving):
        return Step(entries.pending(stage, f"running again: {deletions[-1].why}"), deletions)
    if is_retried(view, stage.name):
        before = None
    elif before is not None and not damaged_at and stays_failed(view, stage, before, wanted=wanted.name):
        return Step(before)
    own = view.observed.by_name.get(wanted.name)
    ended = [*([own] if own else []), *failed_jobs(view, stage)]
    finished = next((job for job in ended if not job.deleting and job.name not in leaving), None)
    if finished is not None:
        return _with_finished_job(view, stage, finished)
    # Below what has failed already, because that is the reason that the user has to know.
    if late is not None:
        return Step(_with_progress(view, stage, late, None))
    # Below a failed Job, because a stage that failed stays Failed while the chain is suspended.
    if view.suspends:
        return Step(StageStatus(name=stage.name, phase="Suspended", digest=stage.digest, message="suspended"))
    # Below the Jobs that exist: an operator that lost its default image must not fail a stage that runs.
    if wanted.manifest is None:
        return Step(entries.failed(stage, FailureClass.POD_REJECTED, wanted.fault))
    return _start(view, stage, wanted, before)


def again_step(view: View, stage: PlannedStage, *, leaving: set[str]) -> Step:
    """The only look at a stage that the user lets run again: whatever its Jobs answered does not count any more."""
    own = [job for job in view.observed.jobs if job.stage == stage.name and not job.deleting]
    deletions = tuple(
        DeleteJob(job.name, job.uid, why=TRAINED_AGAIN, asked_once=True) for job in own if job.name not in leaving
    )
    return Step(entries.pending(stage, f"running again: {TRAINED_AGAIN}"), deletions)


def _committed_step(view: View, stage: PlannedStage, entry: StageStatus, *, leaving: set[str]) -> Step:
    """A committed stage needs none but the Job that committed it, which may still stop, and that of its export."""
    # An earlier release did not annotate the Job of an export.
    needed = {entry.job, entry.missing_export.job if entry.missing_export else None}
    superfluous = tuple(
        DeleteJob(job.name, job.uid, why=f"Job {entry.job} has committed the stage")
        for job in view.training_jobs_of(stage)
        if job.name not in needed
        and job.name not in leaving
        # The Job controller completes it within a second. Another operator may count on its answer.
        and not view.has_succeeded(job)
    )
    in_vain = tuple(
        DeleteJob(
            job.name, job.uid, why="its trainer has committed the stage, and a sidecar has failed or does not end"
        )
        for job in view.training_jobs_of(stage)
        if job.name in needed and job.name not in leaving and runs_in_vain(view, stage, job)
    )
    deletions = (*superfluous, *in_vain)
    step = export_step(view, stage, entry, leaving=leaving | {job.name for job in deletions})
    return replace(step, actions=(*deletions, *step.actions))


def _start(view: View, stage: PlannedStage, wanted: WantedJob, before: StageStatus | None) -> Step:
    assert wanted.manifest is not None
    held = _held_back(view, before)
    carried = {
        "missed_starts": before.missed_starts if before else None,
        "restart_pauses": before.restart_pauses if before else None,
        "stalls": before.stalls if before else None,
    }
    # Running before the Job exists; if the API server refuses the Job, the controller corrects this entry.
    started = StageStatus(
        name=stage.name, phase="Running", digest=stage.digest, job=wanted.name, message="waiting for its pod"
    )
    if stage.queue_name:
        message = f"waiting for quota: Job {wanted.name} is in queue {stage.queue_name}"
        started = started.model_copy(
            update={"phase": "Pending", "admission": "WaitingForQuota", "message": message},
        )
    waiting = held or entries.pending(stage, "").model_copy(update=carried)
    start = Start(
        stage=stage,
        manifest=wanted.manifest,
        started=started.model_copy(update=carried),
        waiting=waiting,
        priority=stage.priority,
        is_held=held is not None,
        refused=refusal(view, before, job=wanted.name),
    )
    return Step(waiting, start=start)


def _with_running_job(view: View, stage: PlannedStage, job: ObservedJob, *, wanted: str) -> Step:
    before = view.previous_entry(stage) or entries.pending(stage, "")
    if failed := deadlines.failed_before(view, stage, job):
        # The API server refused to delete it.
        if is_retried(view, stage.name):
            return _run_again(stage, job, why=RETRIED, asked_once=True)
        return Step(failed, (DeleteJob(job.name, job.uid, why="its stage has failed"),))
    if why := deadlines.timed_out(view, stage, job):
        return _failed_of_deadline(view, stage, job, why)
    if what := deadlines.stopped_progressing(view, stage, job):
        stalls = before.stalls or 0
        if stalled := deadlines.stall_pause(view, stage, job, what, stalls=stalls):
            return _paused(view, stage, job, stalled, stalls=stalled.number)
        return _failed_of_deadline(view, stage, job, f"{what}, after {stalls} retries; {deadlines.RESUMES}")
    if pause := starting.missed_start(view, stage, job, missed=before.missed_starts or 0):
        return _paused(view, stage, job, pause, missed_starts=pause.number, restart_pauses=before.restart_pauses)
    if pause := restarts.ends_too_often(view, job, pauses=before.restart_pauses):
        return _paused(view, stage, job, pause, restart_pauses=pause.number)
    if (peer := _goes_before(view, stage, job)) is not None:
        waits = entries.pending(stage, peer.message).model_copy(update={"admission": "WaitingForPeer"})
        return Step(waits, (DeleteJob(job.name, job.uid, why=f"chain {peer.chain} runs the same stage"),))
    if _lost_its_leader(view, job):
        return _run_again(stage, job, why="the pod of node 0 was lost when others had finished")
    if view.is_replaced(stage, job, wanted=wanted):
        return Step(
            entries.pending(stage, f"replacing Job {job.name}"), (DeleteJob(job.name, job.uid, why=starting.EDITED),)
        )
    return Step(entries.running(view, stage, job))


def _goes_before(view: View, stage: PlannedStage, job: ObservedJob) -> Peer | None:
    """A chain that trains the same stage, so that our Job, which has not started yet, is deleted.

    Two operators may have created two Jobs at the same time, or Kueue has let the Job of the peer run first.
    """
    peer = view.peer_of(stage)
    if peer is None or peer.claim.queue or view.suspends or view.has_started(job):
        return None
    pods = view.observed.pods_of(job)
    if is_held(job):
        return peer if all(pod.is_over for pod in pods) else None
    return peer if not job.suspend_wanted and peer.goes_before(job) else None


def _failed_of_deadline(view: View, stage: PlannedStage, job: ObservedJob, why: str) -> Step:
    # Of the Job itself: it is deleted, and failures_kept.py keeps the entry.
    attempt = view.attempt(stage, job)
    entry = entries.failed(stage, FailureClass.DEADLINE_EXCEEDED, fit(why), job=job, attempt=attempt)
    entry = entry.model_copy(update={"finished_at": timestamp(view.now)})
    return Step(_with_progress(view, stage, entry, job), (DeleteJob(job.name, job.uid, why=why),))


def _with_progress(view: View, stage: PlannedStage, entry: StageStatus, job: ObservedJob | None) -> StageStatus:
    """A failed entry with the last known progress: the pods are deleted, and their logs with them."""
    before = view.entry_of(stage, job) if job else view.previous_entry(stage)
    return entry.model_copy(update={"progress": before.progress if before else None})


def _paused(view: View, stage: PlannedStage, job: ObservedJob, pause: Pause, **counts: int | None) -> Step:
    last = view.previous_entry(stage)
    kept = {"stalls": last.stalls if last else None, **counts}
    entry = entries.pending(stage, pause.message).model_copy(
        update={"next_start_at": pause.ends_at, "failure_class": pause.failure_class, **kept}
    )
    # During a pause, the Job still exists only if the API server refused to delete it. Another pause would change the
    # status, and each change is an event that starts the next look.
    held = _held_back(view, last)
    return Step(held or entry, (DeleteJob(job.name, job.uid, why=pause.why),))


def _held_back(view: View, before: StageStatus | None) -> StageStatus | None:
    """The entry of a stage whose Job may not be created again yet; None if it may. An edit may be the remedy."""
    if before is None or view.was_edited:
        return None
    return before if lasts(before.next_start_at, now=view.now) else None


def _lost_its_leader(view: View, job: ObservedJob) -> bool:
    """Whether node 0 started again after another node had succeeded, which the Job controller does not start again."""
    ended = [pod.end.finished_at for pod in view.observed.pods_of(job) if pod.phase == "Succeeded" and pod.end]
    leader = next(reversed(view.leaders_of(job)), None)
    # A kubelet that did not see the end reports no time for it.
    return leader is not None and not leader.is_over and bool(ended) and leader.created_at > min(ended) > ""


def _with_finished_job(view: View, stage: PlannedStage, job: ObservedJob) -> Step:
    """The wanted Job has finished, and none of its pods has answered that the stage is committed."""
    has_answer = any(pod.phase == "Succeeded" for pod in view.leaders_of(job))
    # The pods of another controller may be in another cluster: the answer would be missing each time.
    if not job.has_failed and not has_answer and not job.managed_by:
        # The metrics were in the pod's answer. A trainer that finds its stage committed reports them within seconds.
        return _run_again(stage, job, why="its pod was deleted, and its result with it")
    # The Job controller counts a pod that is stopped before its trainer runs as a crash.
    if job.suspend_wanted and job.reason in RETRIES_USED_UP:
        return _run_again(stage, job, why=f"Job {job.name} was stopped, which is not counted as a crash")
    last = view.previous_entry(stage)
    if pause := restarts.refused_by_nodes(view, job, pauses=last.restart_pauses if last else None):
        return _paused(view, stage, job, pause, restart_pauses=pause.number)
    return Step(entries.failed_job(view, stage, job))


def _run_again(stage: PlannedStage, job: ObservedJob, *, why: str, asked_once: bool = False) -> Step:
    deletion = DeleteJob(job.name, job.uid, why=why, asked_once=asked_once)
    return Step(entries.pending(stage, f"running again: {why}"), (deletion,))
