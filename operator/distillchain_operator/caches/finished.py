"""Which chains have succeeded and were not edited since: they need no reconcile until something of them changes.

At its start the operator lists them in pages. After that it knows only their names and generations.
"""

from __future__ import annotations

from typing import Any

from distillchain_api.retry_request import annotated_retry, open_retry
from distillchain_operator.chain_key import ChainKey


class FinishedChains:
    """The chains that have succeeded, by UID and generation. One thread writes; others may ask."""

    def __init__(self) -> None:
        self._known: dict[ChainKey, tuple[str, int, str]] = {}
        self._expiring: set[ChainKey] = set()

    def __contains__(self, key: ChainKey) -> bool:
        return key in self._known

    def is_unchanged(self, metadata: dict[str, Any]) -> bool:
        """Whether the chain is one of them and was not edited since."""
        key = ChainKey(metadata["namespace"], metadata["name"])
        return self._known.get(key) == _version(metadata)

    def note(self, document: dict[str, Any]) -> None:
        """The chain has succeeded."""
        metadata = document["metadata"]
        key = ChainKey(metadata["namespace"], metadata["name"])
        (self._expiring.add if jobs_expire(document) else self._expiring.discard)(key)
        self._known[key] = _version(metadata)

    def jobs_expire(self, key: ChainKey) -> bool:
        """Whether the chain is one of them, and wants its Jobs to expire."""
        return key in self._expiring

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted, or has something to do again."""
        self._known.pop(key, None)
        self._expiring.discard(key)

    def keep(self, keys: set[ChainKey]) -> None:
        """Forgets all chains except these, which exist."""
        for key in self._known.keys() - keys:
            self.forget(key)


def _version(metadata: dict[str, Any]) -> tuple[str, int, str]:
    """What changes when the user edits the chain or retries a stage of it."""
    return metadata["uid"], metadata["generation"], annotated_retry(metadata.get("annotations"))


def jobs_expire(document: dict[str, Any]) -> bool:
    """Whether the Jobs of a chain get a TTL, each after its end: that of the last one is after the chain's success."""
    template = (document.get("spec") or {}).get("template") or {}
    return template.get("ttlAfterFinished") is not None


def has_succeeded(document: dict[str, Any]) -> bool:
    """Whether a chain's status says that it succeeded as the spec is now, with every export and the evidence."""
    status = document.get("status") or {}
    is_current = status.get("observedGeneration") == document["metadata"]["generation"]
    retries = open_retry(document["metadata"].get("annotations"), status.get("handledRetry")).stages
    # An export may be made after the commit, or be tried again; so may a control.
    is_open = any(
        c.get("type") in ("ExportsReady", "EvidenceReady") and c.get("status") != "True"
        for c in status.get("conditions") or []
    )
    # A problem, such as a refused deletion, leaves the phase as it is and has to be tried again.
    true = {c.get("type") for c in status.get("conditions") or [] if c.get("status") == "True"}
    is_ready = "Ready" in true and "Stalled" not in true
    return bool(is_current and not retries and status.get("phase") == "Succeeded" and is_ready and not is_open)
