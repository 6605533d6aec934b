"""What to do next for one chain, and what its status says: a pure function of what is observed.

Level-triggered: nothing is remembered but the status, so partially completed work is detected and completed. A vertex
is ready when all that it needs is committed (stage_steps.py), and starts when a slot is free (scheduling.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator.decide import deadlines, starting
from distillchain_operator.decide.actions import SOON_S, Action, CreateJob, CreatePart, Decision, DeleteJob, NotePods
from distillchain_operator.decide.expiry import expirations
from distillchain_operator.decide.peers import Peer
from distillchain_operator.decide.run_time import runs_to_note
from distillchain_operator.decide.scheduling import schedule
from distillchain_operator.decide.stage_steps import ready_step, waiting_step
from distillchain_operator.decide.step import Step
from distillchain_operator.decide.suspension import follow_suspend
from distillchain_operator.decide.turns import Place, has_job, keeps_turn
from distillchain_operator.decide.verdict_step import verdict_step
from distillchain_operator.decide.view import View, is_of_plan
from distillchain_operator.jobs.group import build_network_policy, build_service
from distillchain_operator.jobs.observed import Observed, ObservedJob, ObservedPod
from distillchain_operator.jobs.policy import lingers_in, long_in, overdue_in
from distillchain_operator.jobs.wanted_jobs import WantedJobs
from distillchain_operator.status.chain_status import build_chain_status, waits_for_turn
from distillchain_operator.status.evidence import passes_of_controls


def reconcile(
    plan: Plan,
    observed: Observed,
    *,
    previous: ChainStatus,
    now: datetime,
    wanted: WantedJobs,
    progress: Progress | None = None,
    backing_off: frozenset[str] = frozenset(),
    turn: Place | None = None,
    peers: Mapping[str, Peer] | None = None,
    refused: frozenset[str] = frozenset(),
) -> Decision:
    """The next step of a chain.

    Args:
        observed: its Jobs and pods from live reads.
        previous: its status as stored.
        wanted: the Jobs of the plan.
        progress: newest progress line of the running pod, if it was read.
        backing_off: names of Jobs that the API server refused a moment ago; others go first.
        turn: the place of the chain in line, which counts unless it has its turn already; None: there is no limit.
        peers: chains that run a stage of this one, by digest in the form of the label.
        refused: names of Jobs that the API server refused the last time.
    """
    turn = None if turn is None or keeps_turn(observed, previous, turn) else turn
    waits = None if turn is None or turn.is_free else turn
    view = View(plan, observed, previous, wanted, progress, now, backing_off, waits, peers or {}, refused)
    actions: list[Action] = [*_delete_outdated(view), *_delete_superfluous(view)]
    gone = _deleted(actions)
    actions += [action for action in (*follow_suspend(view), *_note_pods(view)) if action.name not in gone]
    if view.ended_before_upgrade:
        walked = _Walked(_recorded(view), [], has_more_starts=False, waits_for_turn=False)
    else:
        walked = _walk(view, leaving=_deleted(actions))
    stages = walked.stages
    actions += walked.actions
    committed = {entry.job for entry in stages if entry.phase == "Committed"}
    actions += _complete_groups(view, leaving=_deleted(actions) | {name for name in committed if name})
    # The pods of a foreign Job do not stop when this chain is suspended, so they must not keep it `stopping`.
    pods_run = any(not pod.is_over and pod.job_uid not in observed.foreign_jobs for pod in observed.pods)
    status = build_chain_status(plan, stages, previous=previous, now=now, pods_run=pods_run)
    if turn is not None and status.phase == "Running" and not has_job(observed, actions):
        # Otherwise the next look would take it for a chain between two stages, which keeps its turn.
        status = status.model_copy(update={"phase": "Pending"})
    # The time of a chain that was resumed or retried begins with its turn.
    started_at = None if waits_for_turn(status) else deadlines.chain_started_at(view, status.phase)
    status = status.model_copy(update={"started_at": started_at})
    leaving = _deleted(actions)
    expiring = expirations(view, stages)
    actions += [action for action in expiring.actions if action.name not in leaving]
    look_again_s = min(filter(None, (_look_again_s(view, status), expiring.look_again_s)), default=None)
    in_line = walked.waits_for_turn or waits_for_turn(status)
    return Decision(tuple(actions), status, walked.has_more_starts, in_line, look_again_s)


class _Walked(NamedTuple):
    """The entry of every vertex, what they do, whether more of them could start, and whether one waits for its turn."""

    stages: list[StageStatus]
    actions: list[Action]
    has_more_starts: bool
    waits_for_turn: bool


def _walk(view: View, *, leaving: set[str]) -> _Walked:
    """What all vertices do.

    Args:
        leaving: `observed` still lists the Jobs of these names, which are deleted; none may be taken for a running one.
    """
    steps: dict[str, Step] = {}
    # A vertex is after those that it needs, so their entries are known.
    for stage in view.plan.vertices:
        missing = next((need for need in stage.needs if steps[need].entry.phase != "Committed"), None)
        if stage.is_verdict:
            entries = {name: step.entry for name, step in steps.items()}
            steps[stage.name] = verdict_step(view, stage, entries, leaving=leaving)
        elif missing is None:
            steps[stage.name] = ready_step(view, stage, leaving=leaving)
        else:
            # Later stages are judged now, not when their turn comes: by then status has the new generation, and a gate
            # that the edit tightened would no longer be noticed.
            steps[stage.name] = waiting_step(view, stage, missing, leaving=leaving)
    actions = [action for step in steps.values() for action in step.actions]
    entries = {name: step.entry for name, step in steps.items()}
    starts = [step.start for step in steps.values() if step.start]
    skipped = passes_of_controls(view.plan, list(entries.values()))
    chain = [entries[stage.name].phase for stage in view.plan.stages if stage.name not in skipped]
    scheduled = list(schedule(view, starts, leaving=leaving | _deleted(actions), chain=chain))
    entries |= {start.entry.name: start.entry for start in scheduled}
    actions += [start.create for start in scheduled if start.create]
    created = sum(isinstance(action, CreateJob) for action in actions)
    in_line = any(start.waits_for_turn for start in scheduled)
    return _Walked(list(entries.values()), actions, len(starts) > created, in_line)


def _recorded(view: View) -> list[StageStatus]:
    """The entries as an earlier release wrote them, of a chain that had ended. Its controls do not continue."""
    left = {
        "phase": "Pending",
        "job": None,
        "admission": None,
        "next_start_at": None,
        "progress": None,
        "message": "not continued: this release gives it another digest; edit or retry the chain to train it again",
    }
    return [
        entry if entry.phase in ("Committed", "Failed") else entry.model_copy(update=left)
        for entry in view.previous.entries
    ]


def _deleted(actions: list[Action]) -> set[str]:
    return {action.name for action in actions if isinstance(action, DeleteJob)}


def running_pod(plan: Plan, observed: Observed) -> ObservedPod | None:
    """The pod whose log has the progress that status shows: that of node 0."""
    places = {stage.name: place for place, stage in enumerate(plan.vertices)}
    # An export has no progress in status.
    training = [job for job in observed.jobs if not (job.deleting or job.exports_only)]
    jobs = {job.uid: places[job.stage] for job in training if is_of_plan(plan, job)}
    running = [pod for pod in observed.pods if pod.running and pod.is_leader and pod.job_uid in jobs]
    # Of several Jobs the first of the plan: the stages of the chain are before what is beside it.
    return min((pod for pod in running if not pod.deleting), key=lambda pod: jobs[pod.job_uid], default=None)


def _look_again_s(view: View, status: ChainStatus) -> float | None:
    # No event comes if no Job is left to be deleted, or if its pod does not end.
    if view.trained_again or _commits_beside_a_sidecar(view, status):
        return SOON_S
    # A node that disappeared sends no event, so the moment when its pod is overdue must be scheduled.
    left = [overdue_in(pod, now=view.now) for pod in view.observed.pods]
    left += [lingers_in(pod, now=view.now) for pod in view.observed.pods]
    left += _late_in(view)
    # Nor does a deadline, or the end of a pause.
    stages = {stage.name: stage for stage in view.plan.vertices}
    running = [(stages[job.stage], job) for job in view.wanted_unfinished_jobs()]
    moments = [starting.starts_by(view, stage, job) for stage, job in running]
    moments += [deadlines.times_out_at(view, stage, job) for stage, job in running]
    moments += [deadlines.chain_times_out_at(view)] if status.phase in ("Pending", "Running") else []
    waiting = [entry.missing_export or entry for entry in status.entries]
    moments += [datetime.fromisoformat(entry.next_start_at) for entry in waiting if entry.next_start_at]
    left += [moment - view.now for moment in moments if moment]
    return min((time.total_seconds() for time in left if time and time > timedelta()), default=None)


def _late_in(view: View) -> list[timedelta | None]:
    """When the message says how to see why a pod does not start; a policy may refuse the pods of a Job alone."""
    late = [long_in(pod.created_at, now=view.now) for pod in view.observed.pods if pod.has_not_started]
    without_pods = [job for job in view.wanted_unfinished_jobs() if not view.observed.pods_of(job)]
    return late + [long_in(job.started_at, now=view.now) for job in without_pods]


def _commits_beside_a_sidecar(view: View, status: ChainStatus) -> bool:
    """Whether this look commits a stage whose pod has not succeeded: the next one may end its Job (commits.py)."""
    before = {entry.name for entry in view.previous.entries if entry.phase == "Committed"}
    new = {entry.name for entry in status.entries if entry.phase == "Committed"} - before
    return any(job.stage in new and not view.has_succeeded(job) for job in view.wanted_unfinished_jobs())


def _delete_outdated(view: View) -> list[DeleteJob]:
    """Unfinished Jobs of stages that were edited, or have another digest in this release.

    Finished ones are kept for their logs.
    """
    return [
        DeleteJob(job.name, job.uid, why="the chain no longer has this stage with this digest")
        for job in view.observed.jobs
        if not job.is_finished and not job.deleting and not view.is_wanted(job)
    ]


def _delete_superfluous(view: View) -> list[DeleteJob]:
    """Of several unfinished Jobs of one stage all but the oldest, whichever operator created them.

    Two operators may be active for a moment. Both choose the same Job, so they agree.
    """
    same: dict[tuple[str, str], list[ObservedJob]] = {}
    # By digest too: verdicts of other students are deleted by the step of the verdict.
    for job in sorted(view.wanted_unfinished_jobs(), key=lambda job: (job.created_at, job.name)):
        # The Job controller has not seen yet that it succeeded. It has the answer that commits the stage.
        if not view.has_succeeded(job):
            same.setdefault((job.stage, job.digest), []).append(job)
    return [
        DeleteJob(job.name, job.uid, why=f"Job {first.name} runs the same stage")
        for first, *further in same.values()
        for job in further
    ]


def _complete_groups(view: View, *, leaving: set[str]) -> list[CreatePart]:
    """The Services and NetworkPolicies that Jobs on several nodes lack; they are created again if they were deleted.

    Args:
        leaving: names of Jobs whose pods stop, because they are deleted or have committed.
    """
    chain = view.plan.chain
    missing = []
    for job in view.observed.jobs:
        if not job.is_open_group or job.name in leaving:
            continue
        manifests = [build_service(job, namespace=chain.metadata.namespace, chain=chain.name)]
        if view.wanted.defaults.network_policies:
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
        if job.is_finished or job.deleting:
            continue
        runs = runs_to_note(view, job)
        # Status has the newest pod, and most Jobs have no other. Of an export it has none, and Kueue may stop its Job.
        is_in_status = len(runs) == 1 and not any(runs.values()) and not job.queue
        if not is_in_status and runs != {uid: job.noted_runs.get(uid, "") for uid in job.noted_pods}:
            texts = sorted(f"{uid}={run}" if run else uid for uid, run in runs.items())
            notes.append(NotePods(job.name, job.uid, tuple(texts)))
    return notes
