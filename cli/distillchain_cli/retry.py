"""Retries a failed stage or the failed export of a stage: deletes its Job, and the operator creates another one."""

from __future__ import annotations

from typing import Any, NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_cli.chains import status_of
from distillchain_cli.cluster import Cluster
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_cli.program import program_name


def retry(cluster: Cluster, name: str, stage: str | None) -> str:
    """Deletes the Job of the failed stage or export so that the operator tries again.

    Returns: a sentence about the change. Raises: RunFailed when there is nothing to retry; BadInput for a stage that
        the chain does not have.
    """
    chain = cluster.fetch_chain(name)
    failed = _find_failed(name, status_of(chain), stage)
    if failed.job is None:
        raise RunFailed(
            f"{failed.what} has no Job yet: {failed.message}; "
            "correct what the API server refuses, and the operator tries again by itself"
        )
    then = "the operator creates another Job for it" if failed.is_export else "the operator creates it again"
    if chain["spec"].get("suspend"):
        then += f" once the chain is resumed: {program_name()} resume {name}"
    # The Job is read before it is deleted: it may belong to someone else, or run again already.
    job = cluster.fetch_job(failed.job)
    if job is None:
        return f"Job {failed.job} of {failed.what} is already deleted; {then}"
    _check_job(job, chain, failed)
    cluster.delete_job(failed.job, uid=job["metadata"]["uid"])
    return f"deleted Job {failed.job} of {failed.what} ({failed.failure_class}); {then}"


class _FailedJob(NamedTuple):
    """What failed: a stage, or the export of a committed one."""

    what: str
    job: str | None
    message: str | None
    failure_class: FailureClass | None
    is_export: bool = False


def _failure_of(entry: StageStatus) -> _FailedJob | None:
    if entry.phase == "Failed":
        return _FailedJob(f"stage {entry.name}", entry.job, entry.message, entry.failure_class)
    missing = entry.missing_export
    if missing is not None and missing.phase == "Failed":
        what = f"export {missing.export} of stage {entry.name}"
        return _FailedJob(what, missing.job, missing.message, missing.failure_class, is_export=True)
    return None


def _find_failed(chain: str, status: ChainStatus, wanted: str | None) -> _FailedJob:
    if wanted is None:
        found = [failed for entry in status.entries if (failed := _failure_of(entry))]
        # A stage before an export, because later stages wait for it; and the chain before what is beside it.
        first = min(found, key=lambda failed: failed.is_export, default=None)
        if first is None:
            raise RunFailed(f"nothing to retry: {chain} is {status.phase} and none of its stages failed")
        return first
    entry = status.stage_named(wanted)
    if entry is None:
        known = ", ".join(entry.name for entry in status.entries) or "no stage yet"
        raise BadInput(f"--stage: got {wanted}, expected one of {known}")
    failed = _failure_of(entry)
    if failed is None:
        raise RunFailed(f"nothing to retry: stage {wanted} of {chain} is {entry.phase}, not Failed")
    return failed


def _check_job(job: dict[str, Any], chain: dict[str, Any], failed: _FailedJob) -> None:
    """Checks that the Job belongs to the chain and has ended; the status may be a moment old."""
    owners = job["metadata"].get("ownerReferences") or []
    if not any(owner.get("uid") == chain["metadata"]["uid"] for owner in owners):
        raise RunFailed(f"Job {failed.job} does not belong to this chain; it was not deleted")
    conditions = (job.get("status") or {}).get("conditions") or []
    if not any(c["type"] in ("Failed", "Complete") and c["status"] == "True" for c in conditions):
        raise RunFailed(f"nothing to retry: Job {failed.job} of {failed.what} has not ended")
