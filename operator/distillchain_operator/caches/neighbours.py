"""What chains of a namespace have to know of each other: which run, which wait in line, and who runs a stage. Pure.

After a start of the operator, a chain counts as running until the first look at it shows what it does. So no chain is
started in the place of one that runs.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.caches.children import Children
from distillchain_operator.caches.claims import Claims, Concerned, Shared, Store, store_of
from distillchain_operator.caches.finished import has_succeeded
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.actions import Action
from distillchain_operator.decide.peers import Claim, Peer, claims_of
from distillchain_operator.decide.turns import Place, Turn, turn_after
from distillchain_operator.jobs.observed import Observed
from distillchain_operator.status.chain_status import waits_for_turn
from distillchain_operator.status.stored import parse_status


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


def _key_of(document: dict[str, Any]) -> ChainKey:
    return ChainKey(document["metadata"]["namespace"], document["metadata"]["name"])


def _created_at(document: dict[str, Any]) -> str:
    return str(document["metadata"].get("creationTimestamp", ""))


class Neighbours:
    """What the chains of a namespace have to know of each other.

    Args:
        limit: of the running chains in a namespace; 0: none.
        is_complete: no chain exists that is not noted here; otherwise they have to be listed first.
        children: knows the Jobs of chains that were not looked at yet.
    """

    def __init__(self, limit: int = 0, *, is_complete: bool = True, children: Children | None = None) -> None:
        self._limit = limit
        self._claims = Claims(children)
        self._is_complete = is_complete
        self._lines: dict[str, _Line] = {}
        self._seen: set[ChainKey] = set()
        self._listed: set[str | None] = set()
        self._wake: Callable[[Concerned], None] = lambda _: None
        self._unreadable: Callable[[str], None] = lambda _: None

    def report_to(
        self, wake: Callable[[Concerned], None], *, unreadable: Callable[[str], None] = lambda _: None
    ) -> None:
        """Where to report.

        Args:
            wake: called with each chain that has to be looked at because of another one.
            unreadable: called with each namespace whose chains were forgotten.
        """
        self._wake, self._unreadable = wake, unreadable

    def needs_list(self, namespace: str) -> bool:
        """Whether the chains of a namespace have to be listed before one of them may start."""
        return not self._is_complete and self._listed.isdisjoint((None, namespace))

    def note_stored(self, document: dict[str, Any]) -> None:
        """A chain of a list, which may not have been looked at yet."""
        metadata, key = document["metadata"], _key_of(document)
        if key in self._seen or has_succeeded(document) or "deletionTimestamp" in metadata:
            return
        created_at, status = _created_at(document), parse_status(document, key)
        storage = (document.get("spec") or {}).get("storage") or {}
        store = Store(storage.get("endpointUrl") or "", storage.get("uri") or "")
        self._claims.note_stored(key, metadata["uid"], created_at, store, status)
        if not self._limit:
            return
        line = self._lines.setdefault(key.namespace, _Line())
        line.unseen.add(key)
        # Otherwise the first looks at a long line would give each chain a wrong place.
        if waits_for_turn(status):
            line.enter(key, created_at)

    def note_listed(self, namespace: str | None) -> None:
        """All chains of a namespace, or of all of them, were noted."""
        self._listed.add(namespace)

    def note_unreadable(self, namespace: str) -> None:
        """The chains of a namespace are forgotten, because they cannot be read; their Jobs run on.

        If it can be read again, they are listed before one of them starts.
        """
        self._listed.discard(namespace)
        self._unreadable(namespace)

    def looked(
        self,
        document: dict[str, Any],
        plan: Plan | None,
        observed: Observed,
        status: ChainStatus,
        actions: Iterable[Action] = (),
        *,
        waits: bool = False,
    ) -> None:
        """What a look at a chain has found.

        Args:
            plan: None if its spec is invalid.
            status: after the actions.
            actions: without those that the API server has refused.
            waits: it may not start because it has no turn, also if its status says something else.
        """
        key, actions = _key_of(document), tuple(actions)
        claims: dict[Shared, Claim] = {}
        committed: list[Shared] = []
        if plan is not None:
            store = store_of(plan.chain)
            found = claims_of(observed, status, actions)
            claims = {store.share(key.namespace, digest): claim for digest, claim in found.items()}
            models = [entry for entry in status.entries if entry.phase == "Committed" and entry.checkpoint]
            committed = [store.share(key.namespace, entry.digest) for entry in models]
        turn = turn_after(observed, status, actions, waits=waits, was_given_up=self._was_given_up(key))
        self.note(key, _created_at(document), turn, claims=claims, committed=committed)

    def turn_of(self, document: dict[str, Any]) -> Place | None:
        """The place of a chain that has no turn; None if there is no limit."""
        key, created_at = _key_of(document), _created_at(document)
        if not self._limit:
            return None
        line = self._lines.get(key.namespace, _Line())
        before = bisect.bisect_left(line.waiting, _InLine(created_at, key.name))
        is_free = before < self._free(line, without=key)
        return Place(key.namespace, self._limit, is_free, was_given_up=self._was_given_up(key))

    def _was_given_up(self, key: ChainKey) -> bool:
        """Whether a look at a chain has offered its place to others, also if its status could not be written."""
        running = self._lines.get(key.namespace, _Line()).running
        if key in self._seen:
            return key not in running
        # Before this operator started, if others run in its place.
        others = (running | self._claims.running(key.namespace)) - {key}
        return bool(self._limit) and len(others) >= self._limit

    def peers_of(self, document: dict[str, Any], plan: Plan) -> Mapping[str, Peer]:
        """The chains that run a stage of this one, by digest in the form of the label."""
        key, store = _key_of(document), store_of(plan.chain)
        stages = [store.share(key.namespace, stage.digest) for stage in plan.vertices if not stage.is_verdict]
        return self._claims.peers_of(key, _created_at(document), stages)

    def note(
        self,
        key: ChainKey,
        created_at: str,
        turn: Turn,
        *,
        claims: Mapping[Shared, Claim] | None = None,
        committed: Iterable[Shared] = (),
    ) -> None:
        """What a look at a chain has found.

        Args:
            claims: the stages that it runs.
            committed: stages of it that are committed.
        """
        for other in self._claims.note(key, created_at, claims or {}, committed):
            self._wake(other)
        self._seen.add(key)
        if self._limit:
            self._note_turn(key, created_at, turn)

    def _note_turn(self, key: ChainKey, created_at: str, turn: Turn) -> None:
        line = self._lines.setdefault(key.namespace, _Line())
        before = key in line.running, key in line.unseen, line.places.get(key)
        line.unseen.discard(key)
        (line.running.add if turn is Turn.RUNS else line.running.discard)(key)
        if turn is Turn.WAITS:
            line.enter(key, created_at)
        else:
            line.leave(key)
        if before != (key in line.running, False, line.places.get(key)):
            self._wake_next(key.namespace, line)

    def failed(self, key: ChainKey, observed: Observed | None = None, status: ChainStatus | None = None) -> None:
        """A look at a chain has failed, and the next may fail too. If it runs, it still counts; it does not wait.

        Args:
            observed: its Jobs and pods, if they are known. Otherwise it keeps the stages that it ran.
            status: as stored, if it is known.
        """
        has_job = key in self._claims.running(key.namespace)
        created_at, claims = self._claims.of(key)
        # Before the first look, nothing but its Job says whether it runs.
        is_running = key in self._lines.get(key.namespace, _Line()).running or (key not in self._seen and has_job)
        if observed is not None and status is not None:
            left = claims_of(observed, status)
            claims = {shared: claim for shared, claim in claims.items() if shared.digest in left}
            given_up = self._was_given_up(key)
            is_running = turn_after(observed, status, waits=False, was_given_up=given_up) is Turn.RUNS
        self.note(key, created_at, Turn.RUNS if is_running else Turn.RESTS, claims=claims)

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted, or has finished."""
        for other in self._claims.forget(key):
            self._wake(other)
        self._seen.discard(key)
        if self._limit:
            self._note_turn(key, "", Turn.RESTS)

    def check(self, existing: set[ChainKey]) -> None:
        """Wakes the chains that are not in a list of all chains. It may be older than they are, so each is read."""
        known = {key for line in self._lines.values() for key in (*line.running, *line.unseen, *line.places)}
        known |= self._claims.keys()
        for key in sorted(known - existing):
            self._wake(Concerned(key, may_start=False))
        self._seen &= existing | known
        for namespace in [name for name, line in self._lines.items() if line == _Line()]:
            del self._lines[namespace]

    def _free(self, line: _Line, *, without: ChainKey | None = None) -> int:
        others = len(line.running) + len(line.unseen) - (without in line.running) - (without in line.unseen)
        return max(self._limit - others, 0)

    def _wake_next(self, namespace: str, line: _Line) -> None:
        """Wakes the chains at the head of the line that may start."""
        for place in line.waiting[: self._free(line)]:
            self._wake(Concerned(ChainKey(namespace, place.name), may_start=True))
