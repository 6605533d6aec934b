"""What becomes of unfinished Jobs when a chain is suspended and resumed. Pure.

A Job in a queue of Kueue is never suspended or resumed here, because Kueue alone decides when it runs. A chain that has
to wait for other chains is not resumed yet.
"""

from __future__ import annotations

from distillchain_operator.decide.actions import DeleteJob, RemoveSuspendNote, SetSuspend
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import Observed, ObservedJob

NEVER_STARTED = "the chain was suspended before its pod started"


def follow_suspend(view: View) -> list[SetSuspend | DeleteJob | RemoveSuspendNote]:
    """Suspends or resumes every unfinished Job of the spec's stages as the chain says.

    A Job whose pod has not started is deleted instead: the Job controller counts a pod that is stopped before it ran as
    a crash, and with `retries: 0` a suspended chain would fail. So is a Job in a queue of Kueue, which would resume it
    at once or when quota is free. A Job that another controller suspended is resumed by that controller.
    """
    jobs = view.wanted_unfinished_jobs()
    if view.suspends:
        return [
            _stop(job) if job.queue or view.has_started(job) else DeleteJob(job.name, job.uid, why=NEVER_STARTED)
            for job in jobs
            if _is_stopped_by_suspend(view.observed, job)
        ]
    # Only a suspension with our note is undone, or Kueue could never hold a Job back. A note is removed even if another
    # controller resumed the Job: otherwise the operator would resume what Kueue suspends next.
    return [
        RemoveSuspendNote(job.name, job.uid) if job.queue else SetSuspend(job.name, job.uid, suspend=False)
        for job in jobs
        if job.noted_suspended and view.resume_waits_for(job) is None
    ]


def stop_all(observed: Observed) -> list[SetSuspend | DeleteJob]:
    """Stops every unfinished Job of a suspended chain whose spec is invalid, so that its stages are not known."""
    jobs = (job for job in observed.jobs if not job.is_finished and not job.deleting)
    return [_stop(job) for job in jobs if _is_stopped_by_suspend(observed, job)]


def _is_stopped_by_suspend(observed: Observed, job: ObservedJob) -> bool:
    if not job.queue:
        return not job.suspend_wanted
    # The Job controller completes it within a second. Deleting it could lose an answer that is not in status yet.
    return not any(pod.is_leader and pod.phase == "Succeeded" for pod in observed.pods_of(job))


def _stop(job: ObservedJob) -> SetSuspend | DeleteJob:
    if not job.queue:
        return SetSuspend(job.name, job.uid, suspend=True)
    return DeleteJob(job.name, job.uid, why=f"the chain was suspended: its quota in queue {job.queue} is free")
