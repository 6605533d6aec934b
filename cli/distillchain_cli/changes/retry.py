"""Retries a failed stage or the failed export of a stage: asks the operator for another Job, by an annotation."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_cli.api_server.chains import status_of
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.changes.run_request import request_run
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_cli.program import program_name


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def retry(cluster: Cluster, name: str, stage: str | None, *, clock: Callable[[], datetime] = now) -> str:
    """Asks the operator to try the failed stage or export again.

    Returns: a sentence about the change. Raises: RunFailed when there is nothing to retry; BadInput for a stage that
        the chain does not have.
    """
    chain = cluster.fetch_chain(name)
    failed = _find_failed(name, status_of(chain), stage)
    # The timeout of the chain fails a stage with and without a Job.
    if failed.job is None and failed.failure_class is not FailureClass.DEADLINE_EXCEEDED:
        raise RunFailed(
            f"{failed.what} has no Job yet: {failed.message}; "
            "correct what the API server refuses, and the operator tries again by itself"
        )
    request_run(cluster, chain, [failed.stage], token=clock().isoformat(timespec="milliseconds"))
    then = "the operator creates another Job for it"
    if chain["spec"].get("suspend"):
        then += f" once the chain is resumed: {program_name()} resume {name}"
    return f"retrying {failed.what} ({failed.failure_class}); {then}"


class _Failure(NamedTuple):
    """What failed: a stage, or the export of a committed one."""

    stage: str
    what: str
    job: str | None
    message: str | None
    failure_class: FailureClass | None
    is_export: bool = False


def _failure_of(entry: StageStatus) -> _Failure | None:
    if entry.phase == "Failed":
        return _Failure(entry.name, f"stage {entry.name}", entry.job, entry.message, entry.failure_class)
    missing = entry.missing_export
    if missing is not None and missing.phase == "Failed":
        what = f"export {missing.export} of stage {entry.name}"
        return _Failure(entry.name, what, missing.job, missing.message, missing.failure_class, is_export=True)
    return None


def _find_failed(chain: str, status: ChainStatus, wanted: str | None) -> _Failure:
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
