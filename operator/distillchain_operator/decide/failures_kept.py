"""A stage that failed stays Failed, also without its Job, until the user retries it or edits its Job. Pure.

The Job may expire (`ttlAfterFinished`) or be deleted by hand; the reason is in status. Until it is there, the failed
Job counts, also if an operator with another default image would give the Job another name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import StageStatus
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob

RETRIED = "the user retried the stage"


def stays_failed(view: View, stage: PlannedStage, entry: StageStatus, *, wanted: str) -> bool:
    """Whether a failure in status is final.

    Args:
        wanted: name of the Job that the spec asks for now; empty if none can be built.
    """
    # Without a Job, the API server refused it, and the operator tries again by itself.
    if entry.phase != "Failed" or entry.job is None or entry.name in view.retried:
        return False
    # An upgrade of the operator gives Jobs other names. That alone must not retry a stage that failed.
    if not view.was_edited or entry.job == wanted:
        return True
    return any(view.entry_of(stage, job) is entry for job in failed_jobs(view, stage))


def failed_jobs(view: View, stage: PlannedStage) -> Iterator[ObservedJob]:
    """The Jobs of a stage that have failed and that no edit has replaced, also those of another default image."""
    for job in view.jobs_of(stage):
        if job.has_failed and not job.deleting and not job.exports_only and not view.asks_for_another(stage, job):
            yield job


def jobs_to_retry(view: View, stage: PlannedStage) -> list[ObservedJob]:
    """The Jobs that the next one must not find: it may have the name of one, and the failure of each would count."""
    before = view.previous_entry(stage)
    names = {view.wanted.of(stage).name, before.job if before else None}
    failed = [job for job in view.jobs_of(stage) if job.has_failed and not job.exports_only]
    return [*failed, *(job for job in view.observed.jobs if job.name in names and job not in failed)]


def deletions_for_retry(
    view: View, name: str, jobs: Iterable[ObservedJob], *, leaving: set[str]
) -> tuple[DeleteJob, ...]:
    """Deletes the Jobs that have ended, if the user retries their stage.

    Args:
        name: of the stage, which the user may have retried.
        jobs: those of its Jobs that count.
        leaving: names of Jobs that this reconcile deletes.
    """
    if name not in view.retried:
        return ()
    return tuple(
        DeleteJob(job.name, job.uid, why=RETRIED, asked_once=True)
        for job in jobs
        if job.is_finished
        and not job.deleting
        and job.name not in leaving
        # The status may be older than the Jobs; this one was created for the same request.
        and not view.is_of_request(job)
    )


def is_retried(view: View, name: str) -> bool:
    """Whether the user asks to try a stage again that has failed."""
    entry = view.previous.stage_named(name)
    return name in view.retried and entry is not None and entry.phase == "Failed"
