"""Jobs that have ended expire after `ttlAfterFinished`, once status has what they answered. Pure.

Kubernetes deletes them. The Job is created without a TTL: a Job that fails while the operator is down could otherwise
be gone before its reason was read, and its stage would run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distillchain_api.resource.status import StageStatus
from distillchain_api.values import duration_seconds
from distillchain_operator.decide.actions import SOON_S, SetTtl
from distillchain_operator.decide.view import View
from distillchain_operator.jobs.observed import ObservedJob


class Expirations(NamedTuple):
    """What to do about Jobs that have ended.

    Attributes:
        look_again_s: when the others may expire, whose result or failure this look writes to status.
    """

    actions: list[SetTtl]
    look_again_s: float | None = None


def expirations(view: View, entries: Sequence[StageStatus]) -> Expirations:
    """The TTL of Jobs that have ended and are not needed any more.

    Args:
        entries: of all vertices, as this look writes them.
    """
    after = view.plan.chain.spec.template.ttl_after_finished
    if after is None:
        return Expirations([])
    seconds = duration_seconds(after)
    by_name = {entry.name: entry for entry in entries}
    actions, unrecorded = [], False
    for job in view.observed.jobs:
        # A policy of the cluster may set another TTL; setting ours again and again would never end.
        if not job.is_finished or job.deleting or job.ttl_s is not None:
            continue
        entry = by_name.get(job.stage)
        if _is_new(entry, view.previous.stage_named(job.stage), job):
            unrecorded = True
        elif entry is None or _is_needless(entry, job):
            actions.append(SetTtl(job.name, job.uid, seconds))
    return Expirations(actions, SOON_S if unrecorded else None)


def _is_new(entry: StageStatus | None, before: StageStatus | None, job: ObservedJob) -> bool:
    """Whether the stored status does not have the result of a stage, its export, or the failure of this Job yet.

    Kubernetes counts a TTL from the end of a Job, which may be long ago: it may delete the Job at once.
    """
    if _is_failure_of(entry, job) and not _is_failure_of(before, job):
        return True
    if entry is None or entry.phase != "Committed":
        return False
    if before is None or (before.phase, before.digest) != (entry.phase, entry.digest):
        return True
    # A late export is the answer of a Job of its own, long after the stage was committed.
    return job.exports_only and (before.exports, before.missing_export) != (entry.exports, entry.missing_export)


def _is_failure_of(entry: StageStatus | None, job: ObservedJob) -> bool:
    """Whether an entry says why this Job failed: as a stage, or as the export of one."""
    if entry is None:
        return False
    if entry.phase == "Failed":
        return entry.job == job.name and entry.started_at == (job.created_at or None)
    missing = entry.missing_export
    return missing is not None and missing.phase == "Failed" and missing.job == job.name


def _is_needless(entry: StageStatus, job: ObservedJob) -> bool:
    """Whether the entry of a stage does not depend on one of its Jobs any more."""
    if entry.phase in ("Committed", "Failed"):
        return True
    # A stage that waits may still be committed by the answer of a Job; one that runs, by that of an earlier Job.
    return entry.phase == "Running" and entry.job != job.name and job.has_failed
