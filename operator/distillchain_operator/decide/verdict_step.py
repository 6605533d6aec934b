"""What the verdict on a chain and its controls does next: it waits for all students but those that cannot come. Pure.

Its digest says which students it compares. So a control that was retried makes the verdict another vertex, with a Job
of another name, and an old answer is never taken for the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from distillchain_api.evidence_vertices import out_of_reach, without_failed
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import StageStatus
from distillchain_operator.decide import entries
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.decide.failures_kept import deletions_for_retry
from distillchain_operator.decide.stage_steps import again_step, ready_step
from distillchain_operator.decide.step import Step
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.labels import digest_label

TOO_FEW = "the last stage cannot be compared: two seeds of it and two of a control are needed"


def verdict_step(view: View, stage: PlannedStage, others: Mapping[str, StageStatus], *, leaving: set[str]) -> Step:
    """What the verdict does.

    Args:
        others: the entries of all other vertices, by name.
        leaving: names of Jobs that this reconcile deletes.
    """
    if stage.name in view.trained_again:
        return again_step(view, stage, leaving=leaving)
    failed = out_of_reach(view.plan.evidence, {name: entry.phase for name, entry in others.items()})
    # Of the chain itself, nothing can be left out.
    missing = next((name for name in stage.needs if others[name].phase != "Committed" and name not in failed), None)
    if missing is not None:
        waiting = entries.pending(stage, f"waiting for {missing} to commit")
        # As in stage_steps.py: the request to retry holds for this look only.
        before = view.previous.stage_named(stage.name)
        own = [job for job in view.observed.jobs if before is not None and job.name == before.job]
        retried = deletions_for_retry(view, stage.name, own, leaving=leaving)
        return Step(waiting, (*_delete_others(view, stage, "", leaving=leaving), *retried))
    present = without_failed(stage, failed)
    order = present.work_order.evidence
    if order is None or not order.can_be_judged:
        return Step(entries.pending(stage, TOO_FEW), _delete_others(view, stage, "", leaving=leaving))
    deletions = _delete_others(view, stage, present.digest, leaving=leaving)
    step = ready_step(view, present, leaving=leaving | {deletion.name for deletion in deletions})
    return replace(step, actions=(*deletions, *step.actions))


def _delete_others(view: View, stage: PlannedStage, digest: str, *, leaving: set[str]) -> tuple[DeleteJob, ...]:
    """Unfinished Jobs of a verdict on other students than those of `digest`."""
    return tuple(
        DeleteJob(job.name, job.uid, why="the comparison now has other students")
        for job in view.observed.jobs
        if job.stage == stage.name
        and not job.is_finished
        and not job.deleting
        and job.name not in leaving
        and (not digest or job.digest != digest_label(digest))
    )
