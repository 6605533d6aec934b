"""The export of a stage that is committed without it: made by a Job of its own, which never trains. Pure.

The entry of the stage stays as the commit has made it. What becomes of the export is in `missing_export` alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.parallelism import Parallelism, ResolvedParallelism
from distillchain_api.resource.status import ExportStatus, MissingExport, StageStatus
from distillchain_api.wire.work_order import WORK_ORDER_ENV
from distillchain_operator.decide import deadlines, entries, restarts, starting
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.decide.failures_kept import RETRIED, deletions_for_retry
from distillchain_operator.decide.gates import has_exports
from distillchain_operator.decide.pauses import Pause, lasts
from distillchain_operator.decide.scheduling import Start, refusal
from distillchain_operator.decide.step import Step
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.jobs.policy import diagnose
from distillchain_operator.jobs.wanted_jobs import WantedJob
from distillchain_operator.status.committed import bounded_warnings

PRIORITY = 100
"""After every stage: no student waits for an export."""
LOST = "its pod was deleted, and its result with it"


def export_step(view: View, stage: PlannedStage, entry: StageStatus, *, leaving: set[str]) -> Step:
    """What a committed stage does about its exports.

    Args:
        leaving: names of Jobs that this reconcile deletes.
    """
    if has_exports(stage, entry):
        return Step(entry.model_copy(update={"missing_export": None}))
    exporter = exporter_of(view.plan, stage)
    own, late = view.wanted.of(stage), view.wanted.of(exporter)
    before = entry.missing_export
    running = next((job for job in view.unfinished_jobs_of(stage) if job.name not in leaving), None)
    if before is not None and _is_final(view, stage, before, names={own.name, late.name}):
        if running is None or running.name != before.job or not running.exports_only:
            return Step(entry)
        if view.was_edited or view.has_succeeded(running):  # the Job controller completes it within a second
            return Step(entry)
        # Its timeout is over, and the API server refused to delete it.
        return Step(entry, (DeleteJob(running.name, running.uid, why="its export has failed"),))
    if running is not None and running.exports_only and view.is_replaced(exporter, running, wanted=late.name):
        again = _with(stage, entry, phase="Pending", message=f"replacing Job {running.name}")
        return Step(again, (DeleteJob(running.name, running.uid, why=starting.EDITED),))
    if running is not None:
        return _with_running_job(view, stage, entry, running)
    if before is not None and before.phase == "Failed":
        own_jobs = [job for job in view.observed.jobs if job.name == late.name]
        deletions = deletions_for_retry(view, stage.name, own_jobs, leaving=leaving)
        if deletions:
            return Step(_with(stage, entry, phase="Pending", message=f"running again: {RETRIED}"), deletions)
    # The stage's own Job counts until the user retries: its trainer may have been killed while it exported.
    own_counts = before is None and own.manifest is not None and _makes_export(own.manifest)
    ended = _after_ended_job(view, stage, entry, late.name, leaving=leaving)
    if ended is None and own_counts and (job := _ended_job(view, own.name, leaving=leaving)):
        found = _outcome(view, stage, entry, job)
        ended = Step(found) if found else None
    if ended is not None:
        return ended
    if view.suspends:
        return Step(_with(stage, entry, phase="Pending", message="suspended"))
    return _start(view, stage, entry, late)


def _ended_job(view: View, name: str, *, leaving: set[str]) -> ObservedJob | None:
    job = view.observed.by_name.get(name)
    return None if job is None or job.deleting or name in leaving else job


def _after_ended_job(
    view: View, stage: PlannedStage, entry: StageStatus, name: str, *, leaving: set[str]
) -> Step | None:
    """What follows from the ended Job of the export; None if there is none."""
    job = _ended_job(view, name, leaving=leaving)
    if job is None:
        return None
    pauses = entry.missing_export.pauses if entry.missing_export else None
    if pause := restarts.refused_by_nodes(view, job, pauses=pauses):
        return _paused(view, stage, entry, job, pause)
    if found := _outcome(view, stage, entry, job):
        return Step(found)
    # The next one would have no result either.
    if view.has_succeeded(job) or job.managed_by:
        return Step(_failed(stage, entry, job, FailureClass.CRASHED, entries.without_answer(view, job)))
    again = _with(stage, entry, phase="Pending", message=f"running again: {LOST}")
    return Step(again, (DeleteJob(job.name, job.uid, why=LOST),))


def _start(view: View, stage: PlannedStage, entry: StageStatus, late: WantedJob) -> Step:
    if late.manifest is None:
        failure_class = FailureClass.POD_REJECTED
        return Step(_with(stage, entry, phase="Failed", message=late.fault, failure_class=failure_class))
    before = entry.missing_export
    pauses = before.pauses if before else None
    is_held = _is_held_back(view, before)
    waiting = entry if is_held else _with(stage, entry, phase="Pending", pauses=pauses)
    start = Start(
        stage=stage,
        manifest=late.manifest,
        started=_with(stage, entry, phase="Running", job=late.name, message="waiting for its pod", pauses=pauses),
        waiting=waiting,
        priority=PRIORITY,
        is_held=is_held,
        is_export=True,
        refused=refusal(view, entry if before else None, job=late.name),
    )
    return Step(waiting, start=start)


def _with_running_job(view: View, stage: PlannedStage, entry: StageStatus, job: ObservedJob) -> Step:
    pauses = entry.missing_export.pauses if entry.missing_export else None
    if job.exports_only and (why := deadlines.timed_out(view, stage, job)):
        late = _failed(stage, entry, job, FailureClass.DEADLINE_EXCEEDED, why)
        return Step(late, (DeleteJob(job.name, job.uid, why=why),))
    # The stage's own Job may still export what it has committed; its pods have started.
    if job.exports_only:
        pause = starting.missed_start(view, stage, job, missed=pauses or 0)
        pause = pause or restarts.ends_too_often(view, job, pauses=pauses)
        if pause is not None:
            return _paused(view, stage, entry, job, pause)
    shown = entries.running(view, stage, job)
    left = restarts.pauses_before(view, job, pauses)
    phase = "Running" if shown.phase == "Running" else "Pending"
    return Step(_with(stage, entry, phase=phase, job=job.name, message=shown.message, pauses=left))


def _paused(view: View, stage: PlannedStage, entry: StageStatus, job: ObservedJob, pause: Pause) -> Step:
    fields = {"message": pause.message, "failure_class": pause.failure_class}
    again = _with(stage, entry, phase="Pending", pauses=pause.number, next_start_at=pause.ends_at, **fields)
    # The API server refused to delete the Job, as in stage_steps.py.
    held = entry if _is_held_back(view, entry.missing_export) else again
    return Step(held, (DeleteJob(job.name, job.uid, why=pause.why),))


def _is_held_back(view: View, missing: MissingExport | None) -> bool:
    """Whether the Job of the export may not be created again yet. An edit may be the remedy."""
    return missing is not None and not view.was_edited and lasts(missing.next_start_at, now=view.now)


def exporter_of(plan: Plan, stage: PlannedStage) -> PlannedStage:
    """The stage with a work order to export and nothing else, by one process: an export is made on the CPU."""
    last = None if stage.work_order.final else plan.stages[-1].digest
    update = {"export_only": True, "last_digest": last, "parallelism": ResolvedParallelism()}
    order = stage.work_order.model_copy(update=update)
    return replace(stage, work_order=order, parallelism=Parallelism(processes_per_node=1))


def _makes_export(job: dict[str, Any]) -> bool:
    """Whether the work order of a Job asks for an export; that of a stage with a GPU does not."""
    containers = job["spec"]["template"]["spec"]["containers"]
    variables = [env for container in containers for env in container.get("env") or []]
    return any('"export":' in env["value"] for env in variables if env["name"] == WORK_ORDER_ENV)


def refused_export(plan: Plan, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The changes to a stage's entry when the API server does not accept the Job of its export.

    Args:
        changes: as they would be for the Job of the stage itself.
    """
    stage = plan.stage(name)
    assert stage is not None
    fields = {name: value for name, value in changes.items() if name in MissingExport.model_fields}
    return {"missing_export": MissingExport(export=stage.work_order.export.name or "", **fields)}


def _with(stage: PlannedStage, entry: StageStatus, **fields: Any) -> StageStatus:
    missing = MissingExport(export=stage.work_order.export.name or "", **fields)
    return entry.model_copy(update={"missing_export": missing})


def _failed(
    stage: PlannedStage, entry: StageStatus, job: ObservedJob, failure_class: FailureClass, message: str
) -> StageStatus:
    return _with(stage, entry, phase="Failed", job=job.name, message=message, failure_class=failure_class)


def _is_final(view: View, stage: PlannedStage, missing: MissingExport, *, names: set[str]) -> bool:
    """Whether the export has failed and nothing has changed since: no edit of its Job, and no retry."""
    if missing.phase != "Failed" or missing.export != stage.work_order.export.name or missing.job is None:
        return False
    # As with a stage that failed (failures_kept.py).
    return stage.name not in view.retried and (not view.was_edited or missing.job in names)


def _outcome(view: View, stage: PlannedStage, entry: StageStatus, job: ObservedJob) -> StageStatus | None:
    """The entry after a finished Job has made the export or failed to; None if its answer is lost."""
    answered = view.answer_of(stage, job)
    if answered is not None:
        answer, _ = answered
        exports = [ExportStatus.parse(export.to_document()) for export in answer.exports]
        made = {"exports": exports, "warnings": bounded_warnings(answer.warnings), "missing_export": None}
        if has_exports(stage, changed := entry.model_copy(update=made)):
            return changed
        if (failure := answer.export_failure) is not None:
            return _failed(stage, entry, job, failure.failure_class, failure.message)
    if job.has_failed:
        found = diagnose(job, view.observed.pods_of(job))
        return _failed(stage, entry, job, found.failure_class, found.message)
    return None
