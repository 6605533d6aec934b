"""Keeps collections of the API server up to date in the background, across lost connections.

Level-triggered, like the operator: a reader sees the current objects, never a history of changes. The client library's
own `kubernetes.watch.Watch` does not report that a connection was lost or restored, and the user should know both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential, wait_random

from distillchain_cli.api_server.cluster import Cluster, Collection
from distillchain_cli.errors import Expired, Refused, Unreachable

Objects = Mapping[str, dict[str, Any]]
"""Objects by UID."""

PATIENCE_S = 600  # how long the API server may be unreachable before the command gives up
REFUSAL_PATIENCE_S = 30  # a freshly started API server refuses requests for a moment that it later allows
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
SHORT_WATCH_S = 1.0  # a proxy may end every watch at once; then pause instead of asking in a loop


@dataclass(frozen=True)
class Disconnected:
    """The connection was lost; a new one is being opened."""

    reason: str


def follow(cluster: Cluster, collection: Collection) -> Iterator[Objects | Disconnected]:
    """Yields the content of the collection after each change, and Disconnected when the connection was lost.

    Raises: RunFailed when the collection cannot be listed at first, or not again within PATIENCE_S; Refused when the
        user may list but not watch it.
    """
    objects, version = _list(cluster, collection)
    watched_at = time.monotonic()
    while True:
        yield objects
        began = time.monotonic()
        try:
            for change in cluster.watch(collection, version):
                watched_at = time.monotonic()
                version = change["object"]["metadata"]["resourceVersion"]
                if change["type"] != "BOOKMARK":
                    objects = _apply(objects, change)
                    yield objects
        except Expired:
            pass  # normal after a pause such as a sleeping laptop: list again, without a message
        except Unreachable as error:
            yield Disconnected(str(error))
        except Refused as error:
            # Some roles allow list but not watch. After a restart the API server refuses both for a moment.
            if time.monotonic() - watched_at > REFUSAL_PATIENCE_S:
                raise
            yield Disconnected(str(error))
            time.sleep(FIRST_PAUSE_S)
        else:
            # The watch ended as planned: continue from the last version without a new list.
            watched_at = time.monotonic()
            if time.monotonic() - began < SHORT_WATCH_S:
                time.sleep(SHORT_WATCH_S)
            continue
        objects, version = _list_with_retries(cluster, collection)


def _list(cluster: Cluster, collection: Collection) -> tuple[Objects, str]:
    items, version = cluster.list(collection)
    return {item["metadata"]["uid"]: item for item in items}, version


def _apply(objects: Objects, change: dict[str, Any]) -> Objects:
    uid = change["object"]["metadata"]["uid"]
    if change["type"] == "DELETED":
        return {key: value for key, value in objects.items() if key != uid}
    return {**objects, uid: change["object"]}


def _list_with_retries(cluster: Cluster, collection: Collection) -> tuple[Objects, str]:
    # The random part keeps several watches of one command, and several users, from retrying at the same moment.
    retrying = Retrying(
        wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S) + wait_random(0, FIRST_PAUSE_S),
        retry=retry_if_exception_type((Unreachable, Refused)),
        stop=_is_out_of_patience,
        reraise=True,
    )
    return retrying(_list, cluster, collection)


def _is_out_of_patience(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    waited_s = state.seconds_since_start or 0
    return waited_s > (REFUSAL_PATIENCE_S if isinstance(error, Refused) else PATIENCE_S)


class WatchedCollections:
    """Several collections, each followed by its own thread, which ends with the process.

    Raises: RunFailed when one of them cannot be listed.
    """

    def __init__(self, cluster: Cluster, collections: Mapping[str, Collection]) -> None:
        self._changed = threading.Condition()
        self._objects: dict[str, Objects] = {}
        self._disconnected: dict[str, str] = {}
        self._error: Exception | None = None
        self._has_news = False
        for name, collection in collections.items():
            source = follow(cluster, collection)
            # The first list runs in this thread, so that a missing permission fails the command at once.
            self._store(name, next(source))
            threading.Thread(target=self._follow, args=(name, source), name=f"watch {name}", daemon=True).start()

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        """The current objects of a collection."""
        return list(self._objects[name].values())

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    @property
    def disconnected(self) -> str:
        """Why a connection is being reopened; empty when all connections are open."""
        return next(iter(self._disconnected.values()), "")

    def wait(self, timeout_s: float) -> bool:
        """Waits at most `timeout_s` for a change since the last wait. Returns: whether there was one.

        Raises: RunFailed when following a collection was given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._has_news, timeout_s)
            news, self._has_news = self._has_news, False
        if self._error is not None:
            raise self._error
        return news

    def _follow(self, name: str, source: Iterator[Objects | Disconnected]) -> None:
        try:
            for news in source:
                self._store(name, news)
        except Exception as error:  # raised again in the thread that waits
            with self._changed:
                self._error, self._has_news = error, True
                self._changed.notify_all()

    def _store(self, name: str, news: Objects | Disconnected) -> None:
        with self._changed:
            if isinstance(news, Disconnected):
                self._disconnected[name] = news.reason
            else:
                self._disconnected.pop(name, None)
                self._objects[name] = news
            self._has_news = True
            self._changed.notify_all()
