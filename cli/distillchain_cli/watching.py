"""Collections of the API server kept up to date in the background, over lost connections.

Level-triggered, like the operator: who looks sees what holds now, never a history of changes. The client's own
`kubernetes.watch.Watch` hides that a connection was lost and cannot say that it is back; both are news to a person.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential, wait_random

from distillchain_cli.cluster import Cluster, Collection
from distillchain_cli.errors import Expired, Refused, Unreachable

Objects = Mapping[str, dict[str, Any]]
"""By UID."""

PATIENCE_S = 600  # how long an API server may be away before the command gives up
REFUSAL_PATIENCE_S = 30  # an API server that has just started refuses, for a moment, what it will allow
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
SHORT_WATCH_S = 1.0  # a proxy that ends watches at once must not make us ask without a pause


@dataclass(frozen=True)
class Lost:
    """The connection is lost and being made anew."""

    why: str


def follow(cluster: Cluster, collection: Collection) -> Iterator[Objects | Lost]:
    """What the collection holds, each time it changed; Lost between, when the connection broke.

    Raises: RunFailed when it cannot be listed at first, or not again within PATIENCE_S; Refused when it may be listed
        but not watched.
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
                    objects = _changed(objects, change)
                    yield objects
        except Expired:
            pass
        except Unreachable as error:
            yield Lost(str(error))
        except Refused as error:
            if time.monotonic() - watched_at > REFUSAL_PATIENCE_S:
                raise
            yield Lost(str(error))
            time.sleep(FIRST_PAUSE_S)
        else:
            watched_at = time.monotonic()
            if time.monotonic() - began < SHORT_WATCH_S:
                time.sleep(SHORT_WATCH_S)
            continue
        objects, version = _reconnect(cluster, collection)


def _list(cluster: Cluster, collection: Collection) -> tuple[Objects, str]:
    items, version = cluster.list(collection)
    return {item["metadata"]["uid"]: item for item in items}, version


def _changed(objects: Objects, change: dict[str, Any]) -> Objects:
    uid = change["object"]["metadata"]["uid"]
    if change["type"] == "DELETED":
        return {key: value for key, value in objects.items() if key != uid}
    return {**objects, uid: change["object"]}


def _reconnect(cluster: Cluster, collection: Collection) -> tuple[Objects, str]:
    retrying = Retrying(
        wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S) + wait_random(0, FIRST_PAUSE_S),
        retry=retry_if_exception_type((Unreachable, Refused)),
        stop=_is_enough,
        reraise=True,
    )
    return retrying(_list, cluster, collection)


def _is_enough(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    waited_s = state.seconds_since_start or 0
    return waited_s > (REFUSAL_PATIENCE_S if isinstance(error, Refused) else PATIENCE_S)


class Watched:
    """Several collections at once, each followed by a thread of its own, which ends with the process.

    Raises: RunFailed when one of them cannot be listed.
    """

    def __init__(self, cluster: Cluster, collections: Mapping[str, Collection]) -> None:
        self._changed = threading.Condition()
        self._objects: dict[str, Objects] = {}
        self._lost: dict[str, str] = {}
        self._error: Exception | None = None
        self._is_news = False
        for name, collection in collections.items():
            source = follow(cluster, collection)
            self._take(name, next(source))
            threading.Thread(target=self._keep, args=(name, source), name=f"watch {name}", daemon=True).start()

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        """What a collection holds now."""
        return list(self._objects[name].values())

    def __contains__(self, name: str) -> bool:
        return name in self._objects

    @property
    def lost(self) -> str:
        """Why a connection is being made anew; empty: all of them hold."""
        return next(iter(self._lost.values()), "")

    def wait(self, timeout_s: float) -> bool:
        """Waits for news since the last wait, at most `timeout_s`. Returns: whether there is any.

        Raises: RunFailed when a collection is given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_news, timeout_s)
            news, self._is_news = self._is_news, False
        if self._error is not None:
            raise self._error
        return news

    def _keep(self, name: str, source: Iterator[Objects | Lost]) -> None:
        try:
            for news in source:
                self._take(name, news)
        except Exception as error:
            with self._changed:
                self._error, self._is_news = error, True
                self._changed.notify_all()

    def _take(self, name: str, news: Objects | Lost) -> None:
        with self._changed:
            if isinstance(news, Lost):
                self._lost[name] = news.why
            else:
                self._lost.pop(name, None)
                self._objects[name] = news
            self._is_news = True
            self._changed.notify_all()
