"""Whether a chain has come to an end, and how: what `status -w` exits by and `logs -f` stops at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillchain_api.resource.status import ChainStatus
from distillchain_cli.chains import behind, condition, status_of
from distillchain_cli.cluster import Cluster
from distillchain_cli.errors import Refused
from distillchain_cli.printing import see
from distillchain_cli.status_view import failure_of


@dataclass(frozen=True)
class Verdict:
    """How a chain ended, in lines for a person.

    Attributes:
        final: False: it is stalled, and goes on by itself once what it lacks is there.
    """

    succeeded: bool
    lines: tuple[str, ...]
    final: bool = True


def verdict_of(status: ChainStatus) -> Verdict | None:
    """The end that a status tells; None while the chain goes on, or waits suspended."""
    if status.phase == "Succeeded":
        where = status.result.checkpoint if status.result else status.message
        return Verdict(True, (f"succeeded: {where}",))
    stalled = condition(status, "Stalled")
    if stalled is None:
        return None
    final = status.phase == "Failed"
    failure_class = failure_of(status)
    sentence = f"{'failed' if final else 'stalled'}: {status.message or stalled.message}"
    return Verdict(False, (sentence, *([see(failure_class)] if failure_class else [])), final)


def fetch_verdict(cluster: Cluster, chain: dict[str, Any]) -> Verdict | None:
    """As `verdict_of`, but none while the operator has yet to look at an edit or at a retry.

    Raises: Unreachable when that cannot be told now.
    """
    status = status_of(chain)
    verdict = None if behind(chain, status) else verdict_of(status)
    if verdict is None or verdict.succeeded:
        return verdict
    failed = next((entry for entry in status.stages if entry.phase == "Failed" and entry.job), None)
    if failed is None or failed.job is None:
        return verdict
    try:
        job = cluster.fetch_job(failed.job)
    except Refused:  # who may read chains need not be allowed to read Jobs
        return verdict
    # Taken by `retry`: the operator is about to make it anew.
    return None if job is None or "deletionTimestamp" in job["metadata"] else verdict
