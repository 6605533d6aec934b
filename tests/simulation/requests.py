"""The requests of one operator, and what goes wrong with them."""

from __future__ import annotations

import random
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from datetime import datetime
from typing import Any, TypeVar

from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches.children import Kind, Listed
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.status.transitions import ChainEvent
from simulation.etcd import Document, Etcd
from simulation.namespace import Namespace
from simulation.objects import chain_name_of, owner_of

PAUSE_S = 20.0  # what was refused is tried again after 30 s; a user's edit may be the remedy


First = TypeVar("First")
Second = TypeVar("Second")


class Faults:
    """What goes wrong now.

    Attributes:
        refused: HTTP codes with which a webhook or an overloaded API server refuses requests, by what they do.
        lost: the share of requests without an answer; half of them have an effect all the same.
        late: the share of answers that come after other things have happened.
    """

    def __init__(self) -> None:
        self.refused: dict[str, int] = {}
        self.lost = 0.0
        self.late = 0.2


@types.coroutine
def _turn() -> Generator[None, None, None]:
    yield


@types.coroutine
def _interleaved(
    rng: random.Random, first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]
) -> Generator[None, None, tuple[First, Second]]:
    left: dict[int, Coroutine[Any, Any, Any]] = {0: first, 1: second}
    results: dict[int, Any] = {}
    try:
        while left:
            place = rng.choice(sorted(left))
            try:
                left[place].send(None)
            except StopIteration as done:
                results[place] = done.value
                del left[place]
            else:
                yield
    finally:  # an error of one, or the operator is killed
        for coroutine in left.values():
            coroutine.close()
    return results[0], results[1]


class ModelledCluster:
    """The requests of one operator.

    Args:
        take_written: takes the answer to a write of a Job.
    Attributes:
        requests: how many it has sent.
    """

    def __init__(
        self,
        namespaces: dict[str, Namespace],
        etcd: Etcd,
        faults: Faults,
        *,
        take_written: Callable[[Document], None],
    ) -> None:
        self._namespaces, self._etcd, self._faults, self._take_written = namespaces, etcd, faults, take_written
        # What was stored at this version must be known to a decision about a chain.
        self._seen: Counter[ChainKey] = Counter()
        self._began: Counter[ChainKey] = Counter()
        # When a request about an object was refused, and the version at which the look had begun.
        self._refused: dict[tuple[str, str], tuple[float, int]] = {}
        self.requests = 0

    def begin_look(self, key: ChainKey) -> None:
        """A look begins: what it does later may not contradict what is stored now, even if no watch reported it."""
        self._seen[key] = self._began[key] = self._etcd.version

    async def both(
        self, first: Coroutine[Any, Any, First], second: Coroutine[Any, Any, Second]
    ) -> tuple[First, Second]:
        """Two at the same time, whose requests come in any order."""
        return await _interleaved(self._etcd.rng, first, second)

    async def _request(self, what: str, *, about: str = "", key: ChainKey | None = None) -> bool:
        """Waits for its turn.

        Args:
            about: an object that is not changed again soon after that was refused.
            key: its chain.
        Returns: whether the answer is lost after the request had its effect.
        """
        self.requests += 1
        await _turn()
        if key is not None:
            self._check_pause(what, about, key)
        if what in self._faults.refused:
            if key is not None:
                self._refused[what, about] = self._etcd.seconds, self._began[key]
            raise ApiError(self._faults.refused[what], f"denied at port {self._etcd.version}")
        is_lost = self._etcd.rng.random() < self._faults.lost
        if is_lost and self._etcd.rng.random() < 0.5:
            raise ApiError(0, "cannot connect")
        return is_lost

    def _check_pause(self, what: str, about: str, key: ChainKey) -> None:
        at, began = self._refused.get((what, about), (-PAUSE_S, 0))
        chain = self._namespaces[key.namespace].chains.get(key.name)
        if self._etcd.seconds - at < PAUSE_S and chain is not None and chain.edited_at <= began:
            pause_s = self._etcd.seconds - at
            self._etcd.fail(f"the request to {what} {about} was refused, and is sent again after {pause_s:.0f} s")

    async def _answer(self, *, is_lost: bool) -> None:
        """A write has had its effect, and its answer comes: perhaps after what a watch reports of it, or never."""
        if self._etcd.rng.random() < self._faults.late:
            await _turn()
        if is_lost:
            raise ApiError(0, "no answer")

    async def _read(self, namespace: str) -> Namespace:
        if await self._request("read"):
            raise ApiError(0, "no answer")
        return self._namespaces[namespace]

    async def get_chain(self, namespace: str, name: str) -> Document | None:
        return (await self._read(namespace)).objects["chains"].get(name)

    async def list_chains(self, namespace: str) -> AsyncIterator[Document]:
        for document in list((await self._read(namespace)).objects["chains"].values()):
            yield document

    async def list_jobs(self, namespace: str, chain: str) -> Listed:
        place = await self._read(namespace)
        self._seen[ChainKey(namespace, chain)] = self._etcd.version
        return listed(place, Kind.JOBS, chain)

    async def list_pods(self, namespace: str, chain: str) -> Listed:
        return listed(await self._read(namespace), Kind.PODS, chain)

    async def get_job(self, namespace: str, name: str) -> Document | None:
        return (await self._read(namespace)).objects["jobs"].get(name)

    async def log_tail(self, namespace: str, pod: str) -> list[str]:
        await self._request("log")
        return []

    async def dry_run_pod(self, pod: Document) -> None:
        if await self._request("dry run"):
            raise ApiError(0, "no answer")

    async def create_job(self, job: Document) -> None:
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        key = ChainKey(namespace, chain_name_of(job))
        is_lost = await self._request("create", about=f"{name} of {owner_of(job)}", key=key)
        stored = self._namespaces[namespace].create_job(job, seen=self._seen[key])
        await self._answer(is_lost=is_lost)
        self._take_written(stored)

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        place = self._namespaces[namespace]
        key = ChainKey(namespace, place.home[uid].name)
        place.kept.add(uid)
        is_lost = await self._request("delete", about=uid, key=key)
        place.kept.discard(uid)
        place.delete_job(name, uid, seen=self._seen[key])
        await self._answer(is_lost=is_lost)

    async def set_suspend(self, namespace: str, name: str, *, uid: str, suspend: bool) -> None:
        note = {"distillchain.io/suspended": "true" if suspend else None}
        what = "suspend" if suspend else "resume"
        await self._patch_job(what, namespace, name, uid, spec={"suspend": suspend}, annotations=note)

    async def annotate_job(self, namespace: str, name: str, *, uid: str, annotations: dict[str, str]) -> None:
        await self._patch_job("annotate", namespace, name, uid, spec={}, annotations=annotations)

    async def set_ttl(self, namespace: str, name: str, *, uid: str, seconds: int) -> None:
        await self._patch_job("ttl", namespace, name, uid, spec={"ttlSecondsAfterFinished": seconds}, annotations={})

    async def _patch_job(
        self, what: str, namespace: str, name: str, uid: str, *, spec: Document, annotations: Document
    ) -> None:
        place = self._namespaces[namespace]
        is_lost = await self._request(what, about=uid, key=ChainKey(namespace, place.home[uid].name))
        stored = place.patch_job(name, uid, spec=spec, annotations=annotations)
        await self._answer(is_lost=is_lost)
        if stored is not None:
            self._take_written(stored)

    async def patch_status(self, namespace: str, name: str, *, resource_version: str, status: Document) -> Document:
        chain = self._namespaces[namespace].chains.get(name)
        # The operator gives the place of the chain to others, also if this is refused.
        if chain is not None:
            chain.stall(status)
        is_lost = await self._request("status")
        chain = self._namespaces[namespace].chains.get(name)
        if chain is None:
            raise ApiError(404, f"{name} not found", reason="NotFound")
        written = chain.patch_status(resource_version, status)
        await self._answer(is_lost=is_lost)
        return written

    async def create_event(self, chain: Document, event: ChainEvent, *, at: datetime) -> None:
        await self._request("event")


def listed(namespace: Namespace, kind: Kind, chain: str | None = None) -> Listed:
    """The objects of a kind as they are now, of one chain or of all."""
    objects = namespace.objects[kind.value].values()
    found = [document for document in objects if chain is None or chain_name_of(document) == chain]
    return Listed(namespace.etcd.version, found)
