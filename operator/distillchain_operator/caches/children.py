"""The Jobs and pods of unfinished chains, as lists and watches reported them, trimmed to what a decision reads. Pure.

Every object has a resource version, a number that grows with each write of its kind. For each chain it is known up to
which version its objects are complete. Whatever the order in which a watch, a live list and the answer to an own write
arrive, what is known of a chain never gets older.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, NamedTuple, TypeVar

from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.jobs.labels import CHAIN_LABEL
from distillchain_operator.jobs.observed import Observed, ObservedJob, ObservedPod, of_chain
from distillchain_operator.jobs.parsing import parse_job, parse_pod

Child = TypeVar("Child", ObservedJob, ObservedPod)


class Kind(Enum):
    """A kind of objects, by its plural."""

    JOBS = "jobs"
    PODS = "pods"


class Listed(NamedTuple):
    """The objects of a list as JSON data, and the version at which it was made."""

    version: int
    items: list[dict[str, Any]]


@dataclass(slots=True)
class _Of(Generic[Child]):
    """The objects of one kind of one chain.

    Attributes:
        known: by UID, with their versions.
        seen: every change up to this version is in `known`.
    """

    known: dict[str, tuple[int, Child]] = field(default_factory=dict)
    seen: int = 0

    def objects(self) -> list[Child]:
        return sorted((child for _, child in self.known.values()), key=lambda child: child.name)


class _OneKind(Generic[Child]):
    """The objects of one kind."""

    def __init__(self, parse: Callable[[dict[str, Any]], Child], finished: FinishedChains) -> None:
        self._parse: Callable[[dict[str, Any]], Child] = parse
        self._finished = finished
        self._followed: set[str | None] = set()  # namespaces that are watched; None: the whole cluster
        self._of: dict[ChainKey, _Of[Child]] = {}
        self._home: dict[str, ChainKey] = {}  # of the objects that are kept, by UID
        self._newest: dict[str | None, int] = {}  # version of the last list
        # Chains without all objects: they have finished, or one of their objects cannot be read.
        self._left_out: set[ChainKey] = set()

    def follow(self, namespace: str | None, *, is_followed: bool) -> None:
        """The namespace is watched, or no longer."""
        (self._followed.add if is_followed else self._followed.discard)(namespace)

    def of(self, key: ChainKey) -> list[Child] | None:
        """The objects of a chain; None if they are not all known."""
        if self._followed.isdisjoint((None, key.namespace)) or key in self._left_out:
            return None
        return self._of[key].objects() if key in self._of else []

    def apply(self, change: str, document: dict[str, Any]) -> set[ChainKey]:
        """Takes a change that a watch reports. Returns: the chains that it may concern."""
        key, uid, version = chain_of(document), document["metadata"]["uid"], version_of(document)
        changed = self._leave_home(uid, key, version)
        if not key.name:
            return changed
        of = self._entry(key)
        # A watch that starts again repeats changes, and a live list may be newer than the watch.
        if version <= of.seen:
            return changed
        of.seen = version
        child = self.read(document)
        if child is None:
            self.leave_out(key)  # the next look reads it live, fails and says why
        elif key in self._left_out:
            # A chain that has finished needs none of its objects, but some of its Jobs need a change.
            if key in self._finished and (change == "DELETED" or not needs_look(child, key, self._finished)):
                return changed
        elif change == "DELETED":
            if of.known.pop(uid, None) is None:
                return changed
            self._home.pop(uid, None)
        elif not self._put(key, version, child) and change != "ADDED":
            # Most changes of an object, such as those of its managedFields, change nothing that a decision reads.
            return changed
        return changed | {key}

    def write(self, document: dict[str, Any]) -> bool:
        """Takes the answer to an own write. Returns: whether it may have more than this write has changed."""
        key, version = chain_of(document), version_of(document)
        of = self._entry(key)
        # Otherwise the watch is further, and the object may be gone.
        if version <= of.seen or key in self._left_out or (child := self.read(document)) is None:
            return False
        is_new = child.uid not in of.known
        return self._put(key, version, child) and not is_new

    def load(self, key: ChainKey, listed: Listed) -> None:
        """Takes a live list of the objects of one chain."""
        of = self._entry(key)
        # If the watch is further, the list is superfluous; of a chain that was left out it is the next one that counts.
        if listed.version < of.seen:
            return
        found = {}
        for document in listed.items:
            if (child := self.read(document)) is None:
                self.leave_out(key)
                return
            found[child.uid] = version_of(document), child
        self._left_out.discard(key)
        self._replace(key, found, listed.version)

    async def relist(self, namespace: str | None, pages: AsyncIterator[Listed]) -> tuple[int, set[ChainKey]]:
        """Takes all pages of a list. Returns: its version, and the chains that it reports a change for."""
        listing, version = _Listing(self.read, self._finished), 0
        async for page in pages:
            version = page.version
            listing.add(page.items)
        if version < self._newest.get(namespace, 0):  # etcd was restored from a backup
            for key in [key for key in self._of if namespace in (None, key.namespace)]:
                self.forget(key)
        self._newest[namespace] = version
        return version, self._take(namespace, listing, version)

    def _take(self, namespace: str | None, listing: _Listing[Child], version: int) -> set[ChainKey]:
        mine = {key for key in self._of.keys() | self._left_out if namespace in (None, key.namespace)}
        changed = set(listing.to_look_at)
        for key in mine | listing.found.keys() | listing.left_out:
            of = self._of.get(key)
            if of is not None and of.seen > version:
                continue  # a live list of this chain was newer
            if key in listing.left_out:
                self.leave_out(key)
                continue
            self._left_out.discard(key)
            if self._replace(key, listing.found.get(key, {}), version):
                changed.add(key)
        return changed

    def leave_out(self, key: ChainKey) -> None:
        """Keeps nothing of a chain."""
        self.forget(key)
        self._left_out.add(key)

    def forget(self, key: ChainKey) -> None:
        """The chain has no objects, or they are not kept."""
        of = self._of.pop(key, None)
        for uid in of.known if of else ():
            self._home.pop(uid, None)

    def prune(self, existing: set[ChainKey]) -> None:
        """Forgets the objects of chains that have finished, and the chains that neither exist nor have objects."""
        for key, of in list(self._of.items()):
            if key in self._finished and of.known:
                self.leave_out(key)
            elif key in self._finished or (key not in existing and not of.known):
                self.forget(key)
        self._left_out &= existing

    def read(self, document: dict[str, Any]) -> Child | None:
        """The object, or None if it cannot be read."""
        try:
            return self._parse(document)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def _entry(self, key: ChainKey) -> _Of[Child]:
        """What is known of a chain. One that had no objects in the last list had none at its version."""
        if key not in self._of:
            self._of[key] = _Of(seen=max(self._newest.get(None, 0), self._newest.get(key.namespace, 0)))
        return self._of[key]

    def _put(self, key: ChainKey, version: int, child: Child) -> bool:
        """Whether the object differs from what is known of it."""
        known = self._of[key].known
        before = known.get(child.uid)
        if before is not None and before[0] >= version:
            return False
        known[child.uid] = version, child
        self._home[child.uid] = key
        return before is None or before[1] != child

    def _replace(self, key: ChainKey, found: dict[str, tuple[int, Child]], version: int) -> bool:
        of = self._entry(key)
        newer = {uid: known for uid, known in of.known.items() if known[0] > version}
        before = {uid: child for uid, (_, child) in of.known.items()}
        for uid in of.known:
            self._home.pop(uid, None)
        of.known, of.seen = found | newer, version
        self._home |= dict.fromkeys(of.known, key)
        return before != {uid: child for uid, (_, child) in of.known.items()}

    def _leave_home(self, uid: str, key: ChainKey, version: int) -> set[ChainKey]:
        """The chain that the object belonged to before, if somebody has changed its label."""
        home = self._home.get(uid, key)
        if home == key or self._of[home].known[uid][0] >= version:
            return set()
        del self._of[home].known[uid], self._home[uid]
        return {home}


class _Listing(Generic[Child]):
    """The objects of a list, page by page."""

    def __init__(self, read: Callable[[dict[str, Any]], Child | None], finished: FinishedChains) -> None:
        self._read: Callable[[dict[str, Any]], Child | None] = read
        self._finished = finished
        self.found: dict[ChainKey, dict[str, tuple[int, Child]]] = {}
        self.left_out: set[ChainKey] = set()
        self.to_look_at: set[ChainKey] = set()

    def add(self, documents: Iterable[dict[str, Any]]) -> None:
        """A page of it."""
        for document in documents:
            key, child = chain_of(document), self._read(document)
            if not key.name:
                continue
            if key in self._finished or child is None:
                self.left_out.add(key)
                if child is None or needs_look(child, key, self._finished):
                    self.to_look_at.add(key)
            elif key not in self.left_out:
                self.found.setdefault(key, {})[child.uid] = version_of(document), child


class Children:
    """The Jobs and pods of all chains.

    Of chains that have finished nothing is kept, once `prune` was called.
    """

    def __init__(self, finished: FinishedChains) -> None:
        self._finished = finished
        self._jobs = _OneKind(parse_job, self._finished)
        self._pods = _OneKind(parse_pod, self._finished)

    def observed(self, key: ChainKey, uid: str) -> Observed | None:
        """What a chain has; None if that is only known to the API server."""
        jobs, pods = self._jobs.of(key), self._pods.of(key)
        return None if jobs is None or pods is None else of_chain(uid, jobs, pods)

    def follow(self, kind: Kind, namespace: str | None, *, is_followed: bool) -> None:
        """The objects of a namespace, or of the whole cluster, are watched; or no longer."""
        self._of(kind).follow(namespace, is_followed=is_followed)

    def apply(self, kind: Kind, change: str, document: dict[str, Any]) -> set[ChainKey]:
        """Takes a change that a watch reports. Returns: the chains that it may concern."""
        return self._of(kind).apply(change, document)

    def job_written(self, job: dict[str, Any]) -> ChainKey | None:
        """Takes the answer to an own write of a Job. A foreign Job has no label, or an empty one.

        Returns: its chain if the answer may have what another writer has changed before; the watch then reports
            nothing new.
        """
        is_labelled = bool((job["metadata"].get("labels") or {}).get(CHAIN_LABEL))
        return chain_of(job) if is_labelled and self._jobs.write(job) else None

    def load(self, key: ChainKey, *, jobs: Listed, pods: Listed) -> None:
        """Takes live lists of what one chain has."""
        # Nothing of it is kept; if it has something to do again, the next look loads it.
        if key not in self._finished:
            self._jobs.load(key, jobs)
            self._pods.load(key, pods)

    async def relist(
        self, kind: Kind, namespace: str | None, pages: AsyncIterator[Listed]
    ) -> tuple[int, set[ChainKey]]:
        """Takes a list of all objects of a kind. Returns: its version, and the chains that it reports a change for."""
        return await self._of(kind).relist(namespace, pages)

    def prune(self, existing: set[ChainKey]) -> None:
        """Forgets what finished chains have, and the chains that neither exist nor have anything."""
        for kind in (self._jobs, self._pods):
            kind.prune(existing)

    def _of(self, kind: Kind) -> _OneKind[ObservedJob] | _OneKind[ObservedPod]:
        return self._jobs if kind is Kind.JOBS else self._pods


def chain_of(document: dict[str, Any]) -> ChainKey:
    """The chain whose label a Job or pod has. An empty label names no chain, and its objects are ignored."""
    metadata = document["metadata"]
    return ChainKey(metadata["namespace"], metadata["labels"][CHAIN_LABEL])


def version_of(document: dict[str, Any]) -> int:
    """The version of an object or a list, which Kubernetes 1.35 defines as a number; it was one before."""
    return int(document["metadata"]["resourceVersion"])


def needs_look(child: ObservedJob | ObservedPod, key: ChainKey, finished: FinishedChains) -> bool:
    """Whether the object of a chain that has finished is a Job that may still run a pod, or that has to expire."""
    if not isinstance(child, ObservedJob) or child.deleting:
        return False
    return not child.is_finished or (child.ttl_s is None and finished.jobs_expire(key))
