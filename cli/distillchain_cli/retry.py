"""Retries a failed stage: deletes its Job, and the operator recreates it."""

from __future__ import annotations

from typing import Any

from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_cli.chains import status_of
from distillchain_cli.cluster import Cluster
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_cli.program import program_name


def retry(cluster: Cluster, name: str, stage: str | None) -> str:
    """Deletes the Job of the failed stage so that the operator recreates it.

    Returns: a sentence about the change. Raises: RunFailed when there is nothing to retry; BadInput for a stage that
        the chain does not have.
    """
    chain = cluster.fetch_chain(name)
    entry = _failed_stage(name, status_of(chain), stage)
    if entry.job is None:
        raise RunFailed(
            f"stage {entry.name} has no Job yet: {entry.message}; "
            "correct what the API server refuses, and the operator tries again by itself"
        )
    then = "the operator creates it again"
    if chain["spec"].get("suspend"):
        then += f" once the chain is resumed: {program_name()} resume {name}"
    # The Job is read before it is deleted: it may belong to someone else, or run again already.
    job = cluster.fetch_job(entry.job)
    if job is None:
        return f"Job {entry.job} of stage {entry.name} is already deleted; {then}"
    _check_job(job, chain, entry)
    cluster.delete_job(entry.job, uid=job["metadata"]["uid"])
    return f"deleted Job {entry.job} of stage {entry.name} ({entry.failure_class}); {then}"


def _failed_stage(chain: str, status: ChainStatus, wanted: str | None) -> StageStatus:
    if wanted is None:
        entry = next((entry for entry in status.stages if entry.phase == "Failed"), None)
        if entry is None:
            raise RunFailed(f"nothing to retry: {chain} is {status.phase} and none of its stages failed")
        return entry
    found = status.stage_named(wanted)
    if found is None:
        known = ", ".join(entry.name for entry in status.stages) or "no stage yet"
        raise BadInput(f"--stage: got {wanted}, expected one of {known}")
    if found.phase != "Failed":
        raise RunFailed(f"nothing to retry: stage {wanted} of {chain} is {found.phase}, not Failed")
    return found


def _check_job(job: dict[str, Any], chain: dict[str, Any], entry: StageStatus) -> None:
    """Checks that the Job belongs to the chain and has ended; the status may be a moment old."""
    owners = job["metadata"].get("ownerReferences") or []
    if not any(owner.get("uid") == chain["metadata"]["uid"] for owner in owners):
        raise RunFailed(f"Job {entry.job} does not belong to this chain; it was not deleted")
    conditions = (job.get("status") or {}).get("conditions") or []
    if not any(c["type"] in ("Failed", "Complete") and c["status"] == "True" for c in conditions):
        raise RunFailed(f"nothing to retry: Job {entry.job} of stage {entry.name} has not ended")
