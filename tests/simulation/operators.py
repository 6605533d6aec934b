"""An operator as a real controller on the modelled API server: it moves one request at a time, and may be killed anywhere.

Its watches have places in the list of changes, which may lag behind, go back, or be lost until everything is listed.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable
from typing import Any, cast

from distillchain_operator.chain_key import ChainKey
from distillchain_operator.children import Children, Kind, Listed
from distillchain_operator.cluster import ApiError, Cluster
from distillchain_operator.controller import Controller
from distillchain_operator.finished import FinishedChains, has_succeeded
from distillchain_operator.metrics import Metrics
from distillchain_operator.settings import Settings
from distillchain_operator.transitions import ChainEvent
from simulation.etcd import KINDS, Document, Etcd
from simulation.namespace import NAME, Namespace

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
ALL_REQUESTS = 10_000


class NoMetrics:
    """Metrics decide nothing, and take longer to build than a whole look."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_args, **_more: None


class Faults:
    """What goes wrong now.

    Attributes:
        refused: HTTP codes with which a webhook or an overloaded API server refuses requests, by what they do.
        lost: the share of requests without an answer; half of them have an effect all the same.
    """

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}
        self.lost = 0.0


@types.coroutine
def _turn() -> Generator[None, None, None]:
    yield


class ModelledCluster:
    """The requests of one operator.

    Attributes:
        requests: how many it has sent.
    """

    def __init__(self, namespaces: dict[str, Namespace], etcd: Etcd, faults: Faults, operator: Operator) -> None:
        self._namespaces, self._etcd, self._faults, self._operator = namespaces, etcd, faults, operator
        self._seen: Counter[str] = Counter()  # what was stored at this version must be known to a decision
        self.requests = 0

    def begin_look(self, key: ChainKey) -> None:
        """A look begins: what it does later may not contradict what is stored now, even if no watch reported it."""
        self._seen[key.namespace] = self._etcd.version

    async def _request(self, what: str) -> bool:
        """Waits for its turn. Returns: whether the answer is lost after the request had its effect."""
        self.requests += 1
        await _turn()
        if what in self._faults.refused:
            raise ApiError(self._faults.refused[what], f"denied at port {self._etcd.version}")
        is_lost = self._etcd.rng.random() < self._faults.lost
        if is_lost and self._etcd.rng.random() < 0.5:
            raise ApiError(0, "cannot connect")
        return is_lost

    async def _read(self, namespace: str) -> Namespace:
        if await self._request("read"):
            raise ApiError(0, "no answer")
        return self._namespaces[namespace]

    async def get_chain(self, namespace: str, name: str) -> Document | None:
        return (await self._read(namespace)).objects["chains"].get(name)

    async def list_jobs(self, namespace: str, chain: str) -> Listed:
        place = await self._read(namespace)
        self._seen[namespace] = self._etcd.version
        return listed(place, Kind.JOBS)

    async def list_pods(self, namespace: str, chain: str) -> Listed:
        return listed(await self._read(namespace), Kind.PODS)

    async def get_job(self, namespace: str, name: str) -> Document | None:
        return (await self._read(namespace)).objects["jobs"].get(name)

    async def log_tail(self, namespace: str, pod: str) -> list[str]:
        await self._request("log")
        return []

    async def dry_run_pod(self, pod: Document) -> None:
        if await self._request("dry run"):
            raise ApiError(0, "no answer")

    async def create_job(self, job: Document) -> None:
        is_lost = await self._request("create")
        namespace = job["metadata"]["namespace"]
        stored = self._namespaces[namespace].create_job(job, seen=self._seen[namespace])
        if is_lost:
            raise ApiError(0, "no answer")
        self._operator.take_written(stored)

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        is_lost = await self._request("delete")
        self._namespaces[namespace].delete_job(name, uid, seen=self._seen[namespace])
        if is_lost:
            raise ApiError(0, "no answer")

    async def set_suspend(self, namespace: str, name: str, *, uid: str, suspend: bool) -> None:
        note = {"distillchain.io/suspended": "true" if suspend else None}
        await self._patch_job("suspend", namespace, name, uid, spec={"suspend": suspend}, annotations=note)

    async def annotate_job(self, namespace: str, name: str, *, uid: str, annotations: dict[str, str]) -> None:
        await self._patch_job("annotate", namespace, name, uid, spec={}, annotations=annotations)

    async def set_ttl(self, namespace: str, name: str, *, uid: str, seconds: int) -> None:
        await self._patch_job("ttl", namespace, name, uid, spec={"ttlSecondsAfterFinished": seconds}, annotations={})

    async def _patch_job(
        self, what: str, namespace: str, name: str, uid: str, *, spec: Document, annotations: Document
    ) -> None:
        is_lost = await self._request(what)
        stored = self._namespaces[namespace].patch_job(name, uid, spec=spec, annotations=annotations)
        if is_lost:
            raise ApiError(0, "no answer")
        if stored is not None:
            self._operator.take_written(stored)

    async def patch_status(self, namespace: str, name: str, *, resource_version: str, status: Document) -> Document:
        is_lost = await self._request("status")
        written = self._namespaces[namespace].patch_status(resource_version, status)
        if is_lost:
            raise ApiError(0, "no answer")
        return written

    async def create_event(self, chain: Document, event: ChainEvent) -> None:
        await self._request("event")


def listed(namespace: Namespace, kind: Kind) -> Listed:
    """All objects of a kind, as they are now."""
    return Listed(namespace.etcd.version, list(namespace.objects[kind.value].values()))


class _Work:
    """What an operator has to do about one chain, as its queue knows it."""

    def __init__(self) -> None:
        self.is_ready = False
        self.due_at: float | None = None
        self.failures = 0
        self.look: Coroutine[Any, Any, float | None] | None = None


class Operator:
    """One operator, from its start to its end.

    Args:
        watches: names of the namespaces that it works on.
    Attributes:
        looks: how many it has begun.
    """

    def __init__(
        self, namespaces: dict[str, Namespace], etcd: Etcd, faults: Faults, *, image: str, watches: Iterable[str]
    ) -> None:
        self._namespaces = {name: namespaces[name] for name in watches}
        self._etcd = etcd
        self._finished = FinishedChains()
        self._children = Children(self._finished)
        self.cluster = ModelledCluster(self._namespaces, etcd, faults, self)
        self._controller = Controller(
            cast("Cluster", self.cluster),
            Settings(trainer_image=image, progress_s=1e6, namespaces=tuple(self._namespaces)),
            clock=lambda: etcd.now,
            monotonic=lambda: etcd.seconds,
            finished=self._finished,
            children=self._children,
            metrics=cast("Metrics", NoMetrics()),
        )
        self._work = {ChainKey(name, NAME): _Work() for name in self._namespaces}
        self._places = {(kind, name): 0 for kind in KINDS for name in self._namespaces}
        self.looks = 0
        for place in self._namespaces.values():
            if has_succeeded(place.chain):
                self._finished.note(place.chain)
        for name in self._namespaces:
            for kind in Kind:
                self.list_again(kind, name)
            self._list_chain(name)

    @property
    def watches(self) -> list[str]:
        return list(self._namespaces)

    @property
    def is_quiet(self) -> bool:
        """It has seen every change and has nothing to do now."""
        has_seen = all(place == len(self._etcd.changes[kind]) for (kind, _), place in self._places.items())
        return has_seen and not any(work.is_ready or work.look for work in self._work.values())

    @property
    def due_at(self) -> float | None:
        """When it has something to do without a report."""
        return min((work.due_at for work in self._work.values() if work.due_at is not None), default=None)

    def deliver(self, kind: str, name: str, count: int) -> None:
        """The watch of a namespace goes on by some changes of all namespaces."""
        place, changes = self._places[kind, name], self._etcd.changes[kind]
        end = min(place + count, len(changes))
        self._places[kind, name] = end
        for version, namespace, change, document in changes[place:end]:
            if namespace != name:
                continue
            if kind == "chains":
                self._report(ChainKey(name, NAME), version)
            else:
                for key in self._children.apply(Kind(kind), change, document):
                    self._report(key, None)

    def repeat(self, kind: str, name: str, count: int) -> None:
        """A watch that starts again repeats changes."""
        self._places[kind, name] = max(self._places[kind, name] - count, 0)

    def lose(self, kind: str, name: str) -> None:
        """A watch breaks off, and its changes are lost."""
        self._places[kind, name] = len(self._etcd.changes[kind])
        if kind != "chains":
            self._children.follow(Kind(kind), name, is_followed=False)

    def list_again(self, kind: Kind, name: str) -> None:
        """Everything is listed, and watched from then on."""

        async def pages() -> AsyncIterator[Listed]:
            yield listed(self._namespaces[name], kind)

        self._places[kind.value, name] = len(self._etcd.changes[kind.value])
        relisting = self._children.relist(kind, name, pages())
        try:
            relisting.send(None)
        except StopIteration as done:
            _, changed = done.value
        self._children.follow(kind, name, is_followed=True)
        for key in changed:
            self._report(key, None)

    def _list_chain(self, name: str) -> None:
        """As kopf lists chains when it starts to watch."""
        chain = self._namespaces[name].chain
        self._places["chains", name] = len(self._etcd.changes["chains"])
        if not self._finished.is_unchanged(chain["metadata"]):
            self._report(ChainKey(name, NAME), int(chain["metadata"]["resourceVersion"]))

    def resync(self) -> None:
        """The periodic list of chains."""
        keys = set(self._work)
        for key in keys:
            metadata = self._namespaces[key.namespace].chain["metadata"]
            if not self._finished.is_unchanged(metadata):
                self._controller.chains.listed(key, int(metadata["resourceVersion"]))
                self._work[key].is_ready = True
        self._finished.keep(keys)
        self._controller.prune(keys)
        self._children.prune(keys)

    def take_written(self, job: Document) -> None:
        """The answer to an own write of a Job."""
        if key := self._children.job_written(job):
            self._report(key, None)

    def _report(self, key: ChainKey, version: int | None) -> None:
        if self._controller.chains.report(key, version):
            self._work[key].is_ready = True

    def move(self, requests: int = ALL_REQUESTS) -> bool:
        """Goes on with a look, or begins one if there is a reason, until it has waited for so many requests.

        Returns: whether there was one.
        """
        for work in self._work.values():
            if work.due_at is not None and self._etcd.seconds >= work.due_at:
                work.is_ready, work.due_at = True, None
        keys = [key for key, work in self._work.items() if work.is_ready or work.look]
        if not keys:
            return False
        key = self._etcd.rng.choice(keys)
        work = self._work[key]
        if work.look is None:
            work.is_ready = False
            self.looks += 1
            self.cluster.begin_look(key)
            work.look = self._controller.reconcile(key)
        self._go_on(work, work.look, requests)
        return True

    def _go_on(self, work: _Work, look: Coroutine[Any, Any, float | None], requests: int) -> None:
        due_s: float | None = None
        try:
            for _ in range(requests):
                look.send(None)
        except StopIteration as done:
            due_s, work.failures = done.value, 0
        except ApiError:
            work.failures += 1
            due_s = min(FIRST_BACKOFF_S * 2.0 ** (work.failures - 1), MAX_BACKOFF_S)
        except Exception as error:
            self._etcd.fail(f"a look has failed: {type(error).__name__}: {error}")
        else:
            return
        work.look = None
        if due_s is not None:
            due_at = self._etcd.seconds + due_s
            work.due_at = due_at if work.due_at is None else min(due_at, work.due_at)

    def kill(self) -> None:
        """Ends it in the middle of what it does."""
        for work in self._work.values():
            if work.look is not None:
                work.look.close()
