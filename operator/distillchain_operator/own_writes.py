"""The operator's own writes of status: a watch reports them too, and they are no reason to look at a chain again."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from distillchain_operator.chain_key import ChainKey


class News(Enum):
    """Why a chain may be looked at."""

    CHANGE = "something has changed, or may have"
    DUE = "a look is due, and nothing was reported"
    NOTHING = "only the own write was reported, and no look is due yet"


class OwnWrites:
    """The version of each chain that was written last, what watches report, and when a look is due without a report."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._written: dict[ChainKey, str] = {}
        self._reported: dict[ChainKey, set[str]] = {}
        self._due_at: dict[ChainKey, float] = {}

    def note(self, key: ChainKey, version: str) -> None:
        """The status of a chain was written; it has this version now."""
        self._written[key] = version

    def report(self, key: ChainKey, version: str) -> bool:
        """Notes what a watch reports; says whether it may be a reason to look.

        Args:
            version: of the chain; empty if one of its Jobs or pods was reported.
        """
        if version and version == self._written.get(key):
            return False
        # A watch may be faster than the answer to our own write, so each look begins with `take_news`.
        self._reported.setdefault(key, set()).add(version)
        return True

    def take_news(self, key: ChainKey) -> News:
        """What was reported since the last look."""
        reported, due_s = self._reported.pop(key, set()), self.due_in(key)
        if reported - {self._written.get(key)}:
            return News.CHANGE
        if due_s == 0:
            return News.DUE
        return News.NOTHING if reported else News.CHANGE

    def looked(self, key: ChainKey, due_s: float | None) -> None:
        """A look has ended, and the next one is due in some seconds, or only after a report."""
        self._due_at.pop(key, None)
        if due_s is not None:
            self._due_at[key] = self._monotonic() + due_s

    def due_in(self, key: ChainKey) -> float | None:
        """Seconds until the next look is due; None: only after a report."""
        return max(self._due_at[key] - self._monotonic(), 0) if key in self._due_at else None

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted, or a look has failed: the next report is a reason to look, whatever it is."""
        for memory in (self._written, self._reported, self._due_at):
            memory.pop(key, None)
