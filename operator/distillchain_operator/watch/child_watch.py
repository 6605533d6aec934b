"""Lists and watches Jobs and pods into `Children`, and reports the chains that they belong to.

A watch that ends continues at the version that it has reached. If that version may have expired, or after an ERROR,
everything is listed again. While nothing is watched, `Children` says so and the controller reads live.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.children import Children, Kind, version_of
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.watch.queue import Urgency

RETRY_S = 2.0
MAX_RETRY_S = 60.0
SHORT_S = 5.0  # a watch that ends sooner is not started again at once
ABOUT_VERSION = frozenset({400, 410, 504})  # these refusals may mean that the version has expired or does not exist
RELIST_AFTER = 5  # other refusals one after the other

_RANDOM = random.SystemRandom()

log = logging.getLogger(__name__)


class ChildWatch:
    """The watches of Jobs and pods.

    Args:
        report: called for each chain that has a change. First come those whose pod has ended: until the
            next stage starts, a GPU is idle.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        children: Children,
        *,
        report: Callable[[ChainKey, Urgency], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cluster, self._children, self._report, self._pause = cluster, children, report, pause
        self._tasks: dict[tuple[Kind, str | None], asyncio.Task[None]] = {}

    async def watch(self, namespaces: Collection[str | None]) -> None:
        """Watches these namespaces and no others; {None} is the whole cluster.

        Returns when the first list of each was made, or has failed.
        """
        places = {(kind, namespace) for namespace in namespaces for kind in Kind}
        for place in self._tasks.keys() - places:
            self._tasks.pop(place).cancel()
        added = {
            place: _Watch(self._cluster, *place, children=self._children, report=self._report, pause=self._pause)
            for place in places - self._tasks.keys()
        }
        self._tasks |= {place: asyncio.create_task(watch.run()) for place, watch in added.items()}
        await asyncio.gather(*(watch.tried.wait() for watch in added.values()))

    def stop(self) -> None:
        """Ends the watches."""
        for task in self._tasks.values():
            task.cancel()


class _Watch:
    """The watch of one kind in one namespace, or in the whole cluster.

    Attributes:
        tried: set when the first list was made, or has failed.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        namespace: str | None,
        *,
        children: Children,
        report: Callable[[ChainKey, Urgency], None],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._cluster, self._kind, self._namespace = cluster, kind, namespace
        self._children, self._report, self._pause = children, report, pause
        self._reached: int | None = None  # the version up to which everything is known; None: list again
        self._refusals = 0  # one after the other, until a watch works
        self.tried = asyncio.Event()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                if not await self._succeeds():
                    self._set_followed(is_followed=False)
                    await self._pause(self._retry_s())
        finally:
            self._set_followed(is_followed=False)

    async def _succeeds(self) -> bool:
        """Lists if necessary, and watches until the watch ends."""
        fields = {"kind": self._kind.value, "namespace": self._namespace or ""}
        try:
            if self._reached is None:
                await self._list()
            return await self._watch()
        except ApiError as error:
            # The other errors are over soon; a missing right remains until somebody grants it.
            level = logging.WARNING if error.status in (401, 403) else logging.INFO
            log.log(level, "watch broke off and is started again", extra={**fields, "error": error.message})
            self._note_refusal(error.status)
        except Exception:  # an answer that is neither a list nor a watch; the other watches continue
            log.exception("watch failed and is started again", extra=fields)
            self._refusals, self._reached = self._refusals + 1, None
        finally:
            self.tried.set()
        return False

    def _note_refusal(self, status: int) -> None:
        if not status:  # no answer, so the version is still good
            return
        self._refusals += 1
        # An overloaded API server that refuses watches must not have to answer a list of everything each time.
        if status in ABOUT_VERSION or self._refusals % RELIST_AFTER == 0:
            self._reached = None

    def _retry_s(self) -> float:
        """Seconds until the next try. After a lost connection they do not grow, because such a try costs little."""
        if not self._refusals:
            return RETRY_S
        longest = min(RETRY_S * 2.0 ** min(self._refusals - 1, 20), MAX_RETRY_S)
        # The watches of all namespaces are often refused at the same time.
        return longest * _RANDOM.uniform(0.5, 1)

    async def _list(self) -> None:
        pages = self._cluster.list_children(self._kind, self._namespace)
        self._reached, changed = await self._children.relist(self._kind, self._namespace, pages)
        self._set_followed(is_followed=True)
        self.tried.set()
        for key in changed:
            self._report(key, Urgency.NOW)

    async def _watch(self) -> bool:
        """Takes the changes of one watch. Returns: whether it has lasted."""
        assert self._reached is not None
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        async for change in self._cluster.watch_children(self._kind, self._namespace, since=self._reached):
            if change.get("type") == "ERROR":
                document = change.get("object") or {}
                self._reached = None
                raise ApiError(document.get("code") or 500, document.get("message") or "unknown error")
            # After a connection that broke, the first change or bookmark shows that the new one works.
            self._set_followed(is_followed=True)
            if change["type"] != "BOOKMARK":
                urgency = Urgency.FIRST if _has_ended(change["object"]) else Urgency.NOW
                for key in self._children.apply(self._kind, change["type"], change["object"]):
                    self._report(key, urgency)
            self._reached = version_of(change["object"])
            if loop.time() - started_at > SHORT_S:
                self._refusals = 0
        self._refusals = 0
        return loop.time() - started_at > SHORT_S

    def _set_followed(self, *, is_followed: bool) -> None:
        self._children.follow(self._kind, self._namespace, is_followed=is_followed)


def _has_ended(child: dict[str, Any]) -> bool:
    # The status of a Job has no phase.
    return (child.get("status") or {}).get("phase") in ("Succeeded", "Failed")
