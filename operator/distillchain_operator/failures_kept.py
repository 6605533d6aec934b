"""A stage that failed stays Failed, whatever becomes of its Job, until the user retries it or edits its Job. Pure.

The Job may expire (`ttlAfterFinished`) or be deleted by hand; the reason is in status.
"""

from __future__ import annotations

from distillchain_api.resource.status import StageStatus
from distillchain_operator.actions import DeleteJob
from distillchain_operator.view import View

RETRIED = "the user retried the stage"


def stays_failed(view: View, entry: StageStatus | None, *, wanted: str) -> bool:
    """Whether a failure in status is final.

    Args:
        wanted: name of the Job that the spec asks for now; empty if none can be built.
    """
    # Without a Job, the API server refused it, and the operator tries again by itself.
    if entry is None or entry.phase != "Failed" or entry.job is None or entry.name in view.retried:
        return False
    # An upgrade of the operator gives Jobs other names. That alone must not retry a stage that failed.
    return not view.was_edited or entry.job == wanted


def deletions_for_retry(view: View, name: str, *jobs: str | None, leaving: set[str]) -> tuple[DeleteJob, ...]:
    """Deletes the Jobs that have failed, so that the next one may have the same name.

    Args:
        name: of the stage, which the user may have retried.
        jobs: names of its Jobs that count.
        leaving: names of Jobs that this reconcile deletes.
    """
    if name not in view.retried:
        return ()
    known = [view.observed.by_name.get(job or "") for job in dict.fromkeys(jobs)]
    return tuple(
        DeleteJob(job.name, job.uid, why=RETRIED, asked_once=True)
        for job in known
        if job is not None
        and job.is_finished
        and not job.deleting
        and job.name not in leaving
        # The status may be older than the Jobs; this one was created for the same request.
        and not view.is_of_request(job)
    )


def is_retried(view: View, name: str) -> bool:
    """Whether the user asks to try a stage again that has failed."""
    entry = view.previous.stage_named(name)
    return name in view.retried and entry is not None and entry.phase == "Failed"
