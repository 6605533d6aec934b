"""Runs a chain on this machine: the operator's plan and work orders, as subprocesses, one after the other.

After the chain come its controls (`spec.evidence`). One that fails stops neither the others nor the verdict.

The contract's table decides what an exit code means: fatal codes end the chain, crashes count against `retries`, and an
interruption (75) does not count.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from distillchain_api.evidence_vertices import out_of_reach, without_failed
from distillchain_api.failures import EXIT_CODE, EXIT_COMMITTED, EXIT_INTERRUPTED, FATAL_EXIT_CODES, FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.wire.answer import Committed, ExportFailure, Failed, Interrupted
from distillchain_api.wire.work_order import WorkOrder
from distillchain_cli.local.live import View
from distillchain_cli.local.local_processes import count_gpus, processes_here
from distillchain_cli.local.needless_passes import commit_without_pass
from distillchain_cli.local.processes import AttemptResult, RunFolder, StopSignals, run_attempt
from distillchain_cli.local.trainers import Trainers, open_trainers
from distillchain_operator.status.chain_status import build_chain_status, timestamp
from distillchain_operator.status.committed import committed_entry, measured_status, needless_entry

BACKOFF_S = 1.0  # after an interruption and after the first crash; doubles with each further crash up to MAX_BACKOFF_S
MAX_BACKOFF_S = 10.0
CLASS_BY_EXIT_CODE = {code: failure_class for failure_class, code in reversed(EXIT_CODE.items())}
"""If two classes share an exit code, the first of the table, as in the operator's policy."""


@dataclass
class _Run:
    plan: Plan
    folder: RunFolder
    trainers: Trainers
    view: View
    stops: StopSignals
    backoff_s: float
    entries: list[StageStatus] = field(default_factory=list)


def run_chain(
    plan: Plan, folder: RunFolder, *, view: View, stops: StopSignals | None = None, backoff_s: float = BACKOFF_S
) -> ChainStatus:
    """Runs a chain until it succeeds, fails or is stopped, and then its evidence.

    Committed stages are started too: their trainer verifies the checkpoint and ends within seconds. A teacher's pass
    that only they need is not made.

    Args:
        stops: counts the signals; if it has counted one already, nothing is started.
    """
    # Committed stages are not skipped here: only their trainer verifies files and gates, as on a cluster.
    stops = stops or StopSignals()
    with stops.caught(), open_trainers() as trainers:
        run = _Run(plan, folder, trainers, view, stops, backoff_s)
        for stage in plan.stages:
            if _run_vertex(run, stage).phase != "Committed":
                break
        else:
            _run_evidence(run)
    return build_status(plan, run.entries)


def _run_vertex(run: _Run, vertex: PlannedStage) -> StageStatus:
    committed = commit_without_pass(run.plan, vertex)
    if committed is None:
        entry = _run_stage(run, vertex)
    else:
        teacher, task = committed.teacher, vertex.work_order.task
        entry = needless_entry(vertex, measured_status(teacher, task) if teacher else None)
    run.entries.append(entry)
    run.view.ended(entry)
    return entry


def _run_evidence(run: _Run) -> None:
    """Runs what is beside the chain, until it is stopped."""
    for vertex in run.plan.evidence:
        lost = out_of_reach(run.plan.evidence, {entry.name: entry.phase for entry in run.entries})
        ready = without_failed(vertex, lost)
        order = ready.work_order.evidence
        if vertex.name in lost or (order is not None and not order.can_be_judged):
            run.entries.append(_waiting(vertex, "waiting for what it needs, which failed"))
        elif _run_vertex(run, ready).phase == "Suspended":
            return


def build_status(plan: Plan, entries: list[StageStatus]) -> ChainStatus:
    """The status as the cluster would hold it; vertices that were not reached wait for the last one that was."""
    waiting = [
        _waiting(vertex, f"waiting for {entries[-1].name} to commit") for vertex in plan.vertices[len(entries) :]
    ]
    shown = plan
    if entries[-1].phase == "Suspended":  # Ctrl-C has the same effect as `suspend: true` on a cluster
        spec = plan.chain.spec.model_copy(update={"suspend": True})
        shown = replace(plan, chain=plan.chain.model_copy(update={"spec": spec}))
    status = build_chain_status(shown, [*entries, *waiting], previous=ChainStatus(), now=datetime.now(UTC))
    return _with_message(status, entries[-1]) if shown is not plan else status


def _waiting(vertex: PlannedStage, message: str) -> StageStatus:
    return StageStatus(name=vertex.name, phase="Pending", digest=vertex.digest, message=message)


def _with_message(status: ChainStatus, stopped: StageStatus) -> ChainStatus:
    """The status with the reason that a signal, not the spec, suspended the chain or what is beside it."""
    message = f"{stopped.name}: {stopped.message}"
    # A chain that has succeeded stays so.
    affected = ["EvidenceReady"] if status.phase == "Succeeded" else [each.type for each in status.conditions]
    conditions = [
        each.model_copy(update={"message": message}) if each.type in affected else each for each in status.conditions
    ]
    update = {"conditions": conditions} | ({} if status.phase == "Succeeded" else {"message": message})
    return status.model_copy(update=update)


def _run_stage(run: _Run, stage: PlannedStage) -> StageStatus:
    """Runs attempts until one commits, one fails for good, or the retries are used up."""
    started = datetime.now(UTC)
    deadline_at = time.monotonic() + stage.timeout_s if stage.timeout_s else None
    attempt = crashes = 0
    order = _order_here(stage, run.view.note)
    while True:
        attempt += 1
        if run.stops.count:
            return _stopped(stage, attempt - 1, started, "stopped before it started")
        run.view.started(stage.name)
        end = run_attempt(
            order,
            attempt,
            run.folder,
            trainers=run.trainers,
            stops=run.stops,
            deadline_at=deadline_at,
            on_progress=run.view.progress,
            note=run.view.note,
        )
        answer = end.answer if isinstance(end.answer, Committed) and end.answer.digest == stage.digest else None
        if answer is not None and end.exit_code == EXIT_COMMITTED:
            return _committed(stage, attempt, started, answer)
        # Before the checks for timeout and stop: a trainer that refuses its input fails whatever else happened.
        if answer is None and end.exit_code in FATAL_EXIT_CODES:
            return _failed(stage, attempt, started, *diagnose(end))
        if end.timed_out and answer is not None:
            sentence = f"not made within the stage's timeout of {stage.timeout_s} s; the next run makes it"
            return _without_export(stage, attempt, started, answer, FailureClass.DEADLINE_EXCEEDED, sentence)
        if end.timed_out:
            sentence = f"ran longer than its timeout of {stage.timeout_s} s; raise timeout. It was {_saved(end)}"
            return _failed(stage, attempt, started, FailureClass.DEADLINE_EXCEEDED, sentence)
        if run.stops.count:
            return _stopped(stage, attempt, started, _saved(end))
        # Someone else sent SIGTERM to the trainer. The pause keeps a loop of such signals from burning CPU.
        if end.exit_code == EXIT_INTERRUPTED:
            run.view.note(f"stage {stage.name}: {_saved(end)}")
            _pause(run.stops, run.backoff_s)
            continue
        crashes += 1
        failure_class, sentence = diagnose(end)
        if crashes > stage.retries and answer is not None:
            return _without_export(stage, attempt, started, answer, failure_class, f"the trainer crashed: {sentence}")
        if crashes > stage.retries:
            counted = f" (the last of {crashes} failed attempts)" if crashes > 1 else ""
            return _failed(stage, attempt, started, failure_class, sentence + counted)
        pause_s = min(run.backoff_s * 2 ** (crashes - 1), MAX_BACKOFF_S)
        run.view.note(
            f"stage {stage.name}: {failure_class}: {sentence}; "
            f"attempt {attempt + 1} in {pause_s:.0f} s ({crashes} of {stage.retries} retries used)"
        )
        _pause(run.stops, pause_s)


def _order_here(stage: PlannedStage, note: Callable[[str], None]) -> WorkOrder:
    """The stage's work order, for the processes of this machine."""
    wanted, here = stage.work_order.parallelism, processes_here(stage, gpus=count_gpus())
    if here.processes != wanted.processes:
        note(
            f"stage {stage.name}: {here.processes} of {wanted.processes} processes, because it runs on this machine "
            "alone; the digest is the same, and the weights differ by rounding and by the random masks of dropout"
        )
    return stage.work_order.model_copy(update={"parallelism": here})


def diagnose(end: AttemptResult) -> tuple[FailureClass, str]:
    """Why an attempt failed: the trainer's own sentence, or what the exit code says."""
    if isinstance(end.answer, Failed):
        return end.answer.failure_class, end.answer.message
    if end.exit_code < 0:
        name = signal.Signals(-end.exit_code).name
        hint = " (the kernel does this when memory runs out)" if name == "SIGKILL" else ""
        return FailureClass.CRASHED, f"the trainer was killed by {name}{hint}; see {end.log}"
    if end.exit_code == EXIT_COMMITTED:
        return FailureClass.CRASHED, f"the trainer exited with 0 but without an answer for this stage; see {end.log}"
    failure_class = CLASS_BY_EXIT_CODE.get(end.exit_code, FailureClass.CRASHED)
    when = "after it had committed the stage" if isinstance(end.answer, Committed) else "and without an answer"
    return failure_class, f"the trainer exited with code {end.exit_code} {when}; see {end.log}"


def _saved(end: AttemptResult) -> str:
    """Whether the trainer saved its state when it was stopped."""
    if isinstance(end.answer, Interrupted):
        return end.answer.message
    if isinstance(end.answer, Committed):
        return "stopped after it was committed; the next attempt makes its export or report"
    why = f" ({end.answer.message})" if isinstance(end.answer, Failed) else ""
    return f"interrupted before it could save{why}; the next attempt continues from its last saved state"


def _pause(stops: StopSignals, seconds: float) -> None:
    until = time.monotonic() + seconds
    # In short sleeps, because a signal handler does not end time.sleep() early.
    while not stops.count and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


def _committed(stage: PlannedStage, attempt: int, started: datetime, answer: Committed) -> StageStatus:
    now = timestamp(datetime.now(UTC))
    return committed_entry(stage, answer, attempt=attempt, started_at=timestamp(started), finished_at=now)


def _without_export(
    stage: PlannedStage,
    attempt: int,
    started: datetime,
    answer: Committed,
    failure_class: FailureClass,
    message: str,
) -> StageStatus:
    """The entry of a stage whose trainer ended between the commit and its own end, which only an export may miss."""
    failure = None
    if stage.work_order.export.name is not None:
        failure = ExportFailure(failure_class=failure_class, message=message)
    return _committed(stage, attempt, started, answer.model_copy(update={"export_failure": failure}))


def _stopped(stage: PlannedStage, attempt: int, started: datetime, message: str) -> StageStatus:
    return StageStatus(
        name=stage.name,
        phase="Suspended",
        digest=stage.digest,
        attempt=attempt,
        started_at=timestamp(started) if attempt else None,
        message=message,
    )


def _failed(
    stage: PlannedStage, attempt: int, started: datetime, failure_class: FailureClass, message: str
) -> StageStatus:
    return StageStatus(
        name=stage.name,
        phase="Failed",
        digest=stage.digest,
        attempt=attempt,
        started_at=timestamp(started),
        finished_at=timestamp(datetime.now(UTC)),
        message=message,
        failure_class=failure_class,
    )
