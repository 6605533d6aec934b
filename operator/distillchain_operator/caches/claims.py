"""Which chains claim a stage, in memory, and who waits for them. Pure.

Chains that the operator has not looked at since its start claim what their Jobs say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from distillchain_api.resource.spec import DistillationChain
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.caches.children import Children
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.peers import Claim, Peer, claims_of
from distillchain_operator.jobs.labels import digest_label

KNOWN_COMMITS = 10_000


class Shared(NamedTuple):
    """A stage as chains of one namespace share it: with its store, and its digest in the form of the label."""

    namespace: str
    endpoint: str
    uri: str
    digest: str


class Store(NamedTuple):
    """Where a chain keeps its commits."""

    endpoint: str
    uri: str

    def share(self, namespace: str, digest: str) -> Shared:
        """A stage in it."""
        return Shared(namespace, self.endpoint.rstrip("/"), self.uri.rstrip("/"), digest_label(digest))


def store_of(chain: DistillationChain) -> Store:
    """Where this chain keeps its commits."""
    return Store(chain.spec.storage.endpoint_url or "", chain.spec.storage.uri)


class Concerned(NamedTuple):
    """A chain that has to be looked at because of another one."""

    key: ChainKey
    may_start: bool
    """What it waits for is free, so a GPU may be idle."""


@dataclass(frozen=True)
class _Stored:
    """A chain that was not looked at yet."""

    uid: str
    created_at: str
    store: Store
    status: ChainStatus


class Claims:
    """The claims of all chains.

    Args:
        children: knows the Jobs of chains that were not looked at.
    """

    def __init__(self, children: Children | None = None) -> None:
        self._children = children
        self._of: dict[ChainKey, dict[Shared, Claim]] = {}
        self._on: dict[Shared, dict[ChainKey, Claim]] = {}
        self._running: dict[str, set[ChainKey]] = {}  # by namespace
        self._created_at: dict[ChainKey, str] = {}
        self._asks: dict[ChainKey, tuple[str, list[Shared]]] = {}  # when the chain was created, and its stages
        self._asked_by: dict[Shared, set[ChainKey]] = {}
        self._stored: dict[str, dict[ChainKey, _Stored]] = {}
        # Of a stage that is committed, nobody has to wait for a trainer that only finds the commit.
        self._committed: dict[Shared, None] = {}

    def note_stored(self, key: ChainKey, uid: str, created_at: str, store: Store, status: ChainStatus) -> None:
        """A chain of a list that the operator has not looked at."""
        self._stored.setdefault(key.namespace, {})[key] = _Stored(uid, created_at, store, status)

    def note(
        self, key: ChainKey, created_at: str, claims: Mapping[Shared, Claim], committed: Iterable[Shared] = ()
    ) -> list[Concerned]:
        """What a look at a chain has found. Returns: the chains that this may concern, the oldest first."""
        self._stored.get(key.namespace, {}).pop(key, None)
        for shared in committed:
            self._committed.pop(shared, None)
            self._committed[shared] = None
        for shared in [shared for shared, claim in claims.items() if claim.is_again]:
            self._committed.pop(shared, None)
        while len(self._committed) > KNOWN_COMMITS:
            del self._committed[next(iter(self._committed))]
        before = self._of.pop(key, {})
        for shared in before:
            del self._on[shared][key]
            if not self._on[shared]:
                del self._on[shared]
        self._created_at.pop(key, None)
        if claims:
            self._of[key], self._created_at[key] = dict(claims), created_at
        for shared, claim in claims.items():
            self._on.setdefault(shared, {})[key] = claim
        self._note_running(key, is_running=any(not claim.queue for claim in claims.values()))
        changed = {shared for shared in before.keys() | claims.keys() if before.get(shared) != claims.get(shared)}
        freed = before.keys() - claims.keys()
        others = {other for shared in changed for other in self._asked_by.get(shared, ())} - {key}
        may_start = {other for shared in freed for other in self._asked_by.get(shared, ())}
        # The one that is looked at first may take the stage.
        order = sorted(others, key=lambda other: (self._asks[other][0], other.name))
        return [Concerned(other, other in may_start) for other in order]

    def keys(self) -> set[ChainKey]:
        """The chains that claim a stage, or may claim one."""
        return {*self._of, *(key for stored in self._stored.values() for key in stored)}

    def running(self, namespace: str) -> frozenset[ChainKey]:
        """The chains of a namespace that have a Job which may run, or pods that still stop."""
        self._look_at_stored(namespace)
        return frozenset(self._running.get(namespace, ()))

    def _note_running(self, key: ChainKey, *, is_running: bool) -> None:
        keys = self._running.setdefault(key.namespace, set())
        (keys.add if is_running else keys.discard)(key)
        if not keys:
            del self._running[key.namespace]

    def of(self, key: ChainKey) -> tuple[str, dict[Shared, Claim]]:
        """When a chain with claims was created, and what it claims."""
        return self._created_at.get(key, ""), self._of.get(key, {})

    def forget(self, key: ChainKey) -> list[Concerned]:
        """The chain was deleted, or has finished. Returns: the chains that this may concern, the oldest first."""
        self._ask(key, "", [])
        return self.note(key, "", {})

    def peers_of(self, key: ChainKey, created_at: str, stages: Iterable[Shared]) -> dict[str, Peer]:
        """The chains that claim these stages, by digest in the form of the label."""
        self._look_at_stored(key.namespace)
        stages = list(stages)
        self._ask(key, created_at, stages)
        found = {}
        for shared in stages:
            others = [(other, claim) for other, claim in self._on.get(shared, {}).items() if other != key]
            if not others or shared in self._committed:
                continue
            other, claim = min(others, key=lambda row: self._order(*row))
            is_older = (self._created_at[other], other.name) < (created_at, key.name)
            found[shared.digest] = Peer(other.name, claim, is_older)
        return found

    def _order(self, key: ChainKey, claim: Claim) -> tuple[bool, bool, str, str, str]:
        """A Job that may run first, then one that exists, then the oldest."""
        return bool(claim.queue), not claim.since, claim.since, self._created_at[key], key.name

    def _ask(self, key: ChainKey, created_at: str, stages: list[Shared]) -> None:
        for shared in self._asks.pop(key, ("", []))[1]:
            self._asked_by[shared].discard(key)
            if not self._asked_by[shared]:
                del self._asked_by[shared]
        if stages:
            self._asks[key] = created_at, stages
        for shared in stages:
            self._asked_by.setdefault(shared, set()).add(key)

    def _look_at_stored(self, namespace: str) -> None:
        for key, stored in self._stored.pop(namespace, {}).items():
            observed = self._children.observed(key, stored.uid) if self._children else None
            if observed is None:  # nothing is watched; the first look at the chain reads its Jobs
                running = [entry for entry in stored.status.entries if entry.phase == "Running"]
                claims = {entry.digest: Claim(entry.name, entry.started_at or "") for entry in running}
            else:
                claims = claims_of(observed, stored.status)
            shared = {stored.store.share(key.namespace, digest): claim for digest, claim in claims.items()}
            self.note(key, stored.created_at, shared)
