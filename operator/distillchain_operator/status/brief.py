"""News that is over a moment later, so that it need not be written to status. Pure."""

from __future__ import annotations

from distillchain_api.resource.status import ChainStatus, StageStatus

BRIEF_S = 5.0  # a pod whose image is on its node runs within this time


def is_brief(old: ChainStatus, new: ChainStatus) -> bool:
    """Whether a status says no more than that the first pods of Jobs exist and do not run yet.

    Args:
        old: says that these pods are waited for.
    """
    before = {entry.name: entry for entry in old.entries}
    starts = {entry.name for entry in new.entries if _starts(before.get(entry.name), entry)}
    return bool(starts) and _without_start(old, starts) == _without_start(new, starts)


def _starts(old: StageStatus | None, new: StageStatus) -> bool:
    return old is not None and (old.attempt or 0, new.attempt) == (0, 1) and new.message is not None


def _without_start(status: ChainStatus, starts: set[str]) -> ChainStatus:
    def trim(entries: list[StageStatus]) -> list[StageStatus]:
        left = {"attempt": None, "pod_uid": None, "started_at": None, "message": None}
        return [entry.model_copy(update=left) if entry.name in starts else entry for entry in entries]

    conditions = [condition.model_copy(update={"message": ""}) for condition in status.conditions]
    trimmed = {"stages": trim(status.stages), "evidence": trim(status.evidence)}
    return status.model_copy(update={"message": None, "conditions": conditions, **trimmed})
