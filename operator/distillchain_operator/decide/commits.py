"""Whether a vertex is committed: by its status entry, or by the answer of one of its Jobs. Pure."""

from __future__ import annotations

from datetime import timedelta

from distillchain_api.failures import FailureClass
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.status import StageStatus
from distillchain_operator.decide.gates import has_exports, surely_meets_gates
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob
from distillchain_operator.jobs.policy import lingers_in
from distillchain_operator.status.committed import committed_entry, needless_entry


def stays_committed(view: View, stage: PlannedStage, entry: StageStatus, *, job: str) -> bool:
    """Whether a stage that is committed by its status still is one; an edit may tighten a gate.

    Args:
        job: name of the Job that the spec asks for now.
    """
    if entry.phase != "Committed" or _was_needless(stage, entry):
        return False
    # Without an edit the metrics are not compared: they are rounded, so a metric equal to its gate would run again
    # after each upgrade of the operator. A Job of the same name had the same gates, which are part of its work order.
    return not view.was_edited or entry.job == job or surely_meets_gates(stage, entry)


def runs_in_vain(view: View, stage: PlannedStage, job: ObservedJob) -> bool:
    """Whether a Job continues although status has the commit of its trainer: a sidecar does not end, or has failed."""
    before, answered = view.previous_entry(stage), view.answer_of(stage, job)
    if before is None or before.phase != "Committed" or answered is None:
        return False
    _, pod = answered
    # The Job controller starts another one, which could only make what is missing: an export, or the report of a
    # trainer that was killed after its commit.
    if pod.phase == "Failed":
        return pod.end is not None and pod.end.exit_code == 0 and has_exports(stage, before)
    left = lingers_in(pod, now=view.now)
    return left is not None and left <= timedelta()


def found_damaged_at(view: View, stage: PlannedStage) -> str:
    """The time when a vertex that needs this one failed because its checkpoint is damaged or missing; empty otherwise.

    Also empty until the user retries that failure. Then the status of this stage is not trusted: its trainer verifies
    the checkpoint, or trains again if the user has deleted the manifest.
    """
    for following in view.plan.vertices:
        entry = _entry_of_failure(view, stage, following) if stage.name in following.needs else None
        if entry is None or entry.phase != "Failed" or entry.failure_class is not FailureClass.CHECKPOINT_CORRUPT:
            continue
        if following.name in view.retried:
            return entry.finished_at or ""
    return ""


def is_outdated(job: ObservedJob, damaged_at: str) -> bool:
    """Whether the answer of a Job does not count any more, because the checkpoint was found damaged at a moment.

    A Job that exports the stage verifies nothing if its export fails.
    """
    # Times of Kubernetes are RFC 3339 in UTC with whole seconds, so they compare as text.
    return bool(damaged_at) and (job.exports_only or job.created_at <= damaged_at)


def _entry_of_failure(view: View, stage: PlannedStage, following: PlannedStage) -> StageStatus | None:
    """What status says of a vertex that needs the stage; None if its failure is not about the stage."""
    if not following.is_verdict:
        return view.previous_entry(following)
    # What is beside a chain never undoes its success.
    if not stage.is_evidence:
        return None
    # By name: the digest of a verdict also depends on which controls have failed.
    entry = view.previous.stage_named(following.name)
    # A verdict needs many students, and names the one that is damaged first (weigh_evidence.py).
    return entry if entry and (entry.message or "").startswith(f"{stage.name}: ") else None


def _was_needless(stage: PlannedStage, entry: StageStatus) -> bool:
    """The entry is one of `needless_pass`: it holds only as long as the pass is not needed."""
    return stage.is_pass and entry.checkpoint is None


def needless_pass(view: View, stage: PlannedStage) -> StageStatus | None:
    """The entry of a teacher's pass that is not made, because all that needs it is committed already.

    It has the metrics of the teacher, as one of these stages measured it.
    """
    if not stage.is_pass:
        return None
    found = []
    for following in view.plan.vertices:
        if stage.name not in following.needs:
            continue
        entry = view.previous_entry(following)
        # A committed stage whose checkpoint is damaged trains again, and then it needs the pass.
        if entry is None or found_damaged_at(view, following):
            return None
        if not stays_committed(view, following, entry, job=view.wanted.of(following).name):
            return None
        found.append(entry)
    return needless_entry(stage, found[0].teacher) if found else None


def committed_by_job(view: View, stage: PlannedStage, *, wanted: str, after: str) -> StageStatus | None:
    """The entry from the answer of a Job's trainer: of the wanted Job first, of another only if its gates are met too.

    Args:
        wanted: name of the Job that the spec asks for now.
        after: when its checkpoint was found damaged; empty: it was not.
    """
    # A Job of another name may have run under other gates, so it commits the stage only if it surely meets the present
    # ones.
    jobs = sorted(view.jobs_of(stage), key=lambda job: (job.name != wanted, job.created_at))
    for job in jobs:
        answered = view.answer_of(stage, job)
        if answered is None or job.deleting or is_outdated(job, after):
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
        if job.name == wanted or surely_meets_gates(stage, entry):
            return entry
    return None
