"""What a look at a chain has decided, and what that was decided on. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator.decide.actions import Action, Decision
from distillchain_operator.jobs.observed import Observed


class Decided(NamedTuple):
    """What to do about a chain, and what that was decided on.

    Attributes:
        document: the chain as it was read.
        plan: None if its spec is invalid.
        previous: its status as stored.
        done: the actions that the API server has accepted so far.
    """

    document: dict[str, Any]
    plan: Plan | None
    observed: Observed
    previous: ChainStatus
    decision: Decision
    done: list[Action]
    progress: Progress | None = None

    @property
    def fails(self) -> bool:
        """Whether a stage or an export becomes failed."""
        return bool(_failed(self.decision.status) - _failed(self.previous))

    @property
    def handles_retry(self) -> bool:
        """Whether this status is the first that has the user's last request to run stages again."""
        return self.decision.status.handled_retry != self.previous.handled_retry

    @property
    def commits_after_retry(self) -> bool:
        """Whether a stage becomes committed that the user may have let train again before."""
        return bool(self.previous.handled_retry and _committed(self.decision.status) - _committed(self.previous))


def _failed(status: ChainStatus) -> set[tuple[str, str | None]]:
    """The stages and exports that have failed, each with its Job."""
    stages = {(entry.name, entry.job) for entry in status.entries if entry.phase == "Failed"}
    missing = [(entry.name, entry.missing_export) for entry in status.entries if entry.missing_export]
    return stages | {(name, export.job) for name, export in missing if export.phase == "Failed"}


def _committed(status: ChainStatus) -> set[tuple[str, str | None]]:
    """The stages that are committed, each with its digest."""
    return {(entry.name, entry.digest) for entry in status.entries if entry.phase == "Committed"}
