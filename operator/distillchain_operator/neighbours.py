"""The chains of each namespace that run, and those that wait for their turn, by time of creation and name. Pure.

After a start of the operator, a chain counts as running until the first look at it shows what it does. So no chain is
started in the place of one that runs.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.finished import has_succeeded
from distillchain_operator.stored_status import parse_status
from distillchain_operator.turns import Turn, TurnWait, waits_for_turn

NUMBERED = 10  # Chains that know their place. A thousand chains must not all be written each time one of them starts.


class _InLine(NamedTuple):
    """A chain that waits. Times are RFC 3339 in UTC with whole seconds, so they compare as text."""

    created_at: str
    name: str


@dataclass
class _Line:
    """The chains of one namespace.

    Attributes:
        unseen: those that existed when the operator started and that it has not looked at yet.
        waiting: in order; each is in `places` too.
    """

    running: set[ChainKey] = field(default_factory=set)
    unseen: set[ChainKey] = field(default_factory=set)
    waiting: list[_InLine] = field(default_factory=list)
    places: dict[ChainKey, _InLine] = field(default_factory=dict)

    def enter(self, key: ChainKey, created_at: str) -> None:
        place = _InLine(created_at, key.name)
        if self.places.get(key) != place:
            self.leave(key)  # a chain of the same name, which was deleted
            self.places[key] = place
            bisect.insort(self.waiting, place)

    def leave(self, key: ChainKey) -> None:
        place = self.places.pop(key, None)
        if place is not None:
            del self.waiting[bisect.bisect_left(self.waiting, place)]


class Neighbours:
    """What the chains of a namespace have to know of each other.

    Args:
        limit: of the running chains in a namespace; 0: none.
        is_complete: no chain exists that is not noted here; otherwise they have to be listed first.
    """

    def __init__(self, limit: int = 0, *, is_complete: bool = True) -> None:
        self._limit = limit
        self._is_complete = is_complete
        self._lines: dict[str, _Line] = {}
        self._seen: set[ChainKey] = set()
        self._listed: set[str | None] = set()
        self._shown: dict[ChainKey, TurnWait] = {}  # what the status of a waiting chain says, or will say
        self._wake: Callable[[ChainKey], None] = lambda _: None

    def report_to(self, wake: Callable[[ChainKey], None]) -> None:
        """`wake` is called with each chain that has to be looked at because of another one."""
        self._wake = wake

    def needs_list(self, namespace: str) -> bool:
        """Whether the chains of a namespace have to be listed before one of them may start."""
        return self._limit > 0 and not self._is_complete and self._listed.isdisjoint((None, namespace))

    def note_stored(self, document: dict[str, Any]) -> None:
        """A chain of a list, which may not have been looked at yet."""
        metadata = document["metadata"]
        key = ChainKey(metadata["namespace"], metadata["name"])
        if not self._limit or key in self._seen or has_succeeded(document) or "deletionTimestamp" in metadata:
            return
        line = self._lines.setdefault(key.namespace, _Line())
        line.unseen.add(key)
        # Otherwise the first looks at a long line would give each chain a wrong place.
        if waits_for_turn(parse_status(document, key)):
            line.enter(key, metadata.get("creationTimestamp", ""))

    def note_listed(self, namespace: str | None) -> None:
        """All chains of a namespace, or of all of them, were noted."""
        self._listed.add(namespace)

    def turn_of(self, key: ChainKey, created_at: str) -> TurnWait | None:
        """Why a chain that has no turn has to wait; None if it may start.

        Args:
            created_at: when the chain was created.
        """
        self._shown.pop(key, None)
        wait = self._turn_of(key, created_at)
        if wait is not None:
            self._shown[key] = wait
        return wait

    def note(self, key: ChainKey, created_at: str, turn: Turn) -> None:
        """What a look at a chain has found."""
        if not self._limit:
            return
        line = self._lines.setdefault(key.namespace, _Line())
        before = key in line.running, key in line.unseen, key in line.places
        self._seen.add(key)
        line.unseen.discard(key)
        (line.running.add if turn is Turn.RUNS else line.running.discard)(key)
        if turn is Turn.WAITS:
            line.enter(key, created_at)
        else:
            line.leave(key)
            self._shown.pop(key, None)
        if before != (key in line.running, False, key in line.places):
            self._wake_changed(key.namespace, line)

    def failed(self, key: ChainKey) -> None:
        """A look at a chain has failed, and the next may fail too. If it waits, those behind it may start."""
        line = self._lines.get(key.namespace)
        if line is not None and key not in line.running:
            self.note(key, "", Turn.RESTS)

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted, or has finished."""
        self.note(key, "", Turn.RESTS)
        self._seen.discard(key)

    def check(self, existing: set[ChainKey]) -> None:
        """Wakes the chains that are not in a list of all chains. It may be older than they are, so each is read."""
        known = {key for line in self._lines.values() for key in (*line.running, *line.unseen, *line.places)}
        for key in known - existing:
            self._wake(key)
        self._seen &= existing | known
        for namespace in [name for name, line in self._lines.items() if line == _Line()]:
            del self._lines[namespace]

    @property
    def waiting(self) -> dict[str, int]:
        """How many chains wait for their turn, by namespace."""
        return {namespace: len(line.waiting) for namespace, line in self._lines.items()}

    def _free(self, line: _Line, *, without: ChainKey | None = None) -> int:
        others = len(line.running) + len(line.unseen) - (without in line.running) - (without in line.unseen)
        return max(self._limit - others, 0)

    def _turn_of(self, key: ChainKey, created_at: str) -> TurnWait | None:
        line = self._lines.get(key.namespace, _Line())
        if not self._limit:
            return None
        before, free = bisect.bisect_left(line.waiting, _InLine(created_at, key.name)), self._free(line, without=key)
        if before < free:
            return None
        place = before - free + 1
        # Those before it that may start are about to run. Chains that were not looked at may not run at all.
        running = max(len(line.running - {key}), self._limit)
        return TurnWait(key.namespace, self._limit, running, place if place <= NUMBERED else 0)

    def _wake_changed(self, namespace: str, line: _Line) -> None:
        """Wakes the chains at the head of the line that may start, or whose status would have to say something else."""
        for place in line.waiting[: self._free(line) + NUMBERED]:
            key = ChainKey(namespace, place.name)
            if self._turn_of(key, place.created_at) != self._shown.get(key):
                self._wake(key)
