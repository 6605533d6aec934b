"""Creates the Events about chains. In a running operator they have a line of their own: no stage waits for them.

Each is created once or not at all: status has what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import Any, NamedTuple

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.status.transitions import ChainEvent

AT_ONCE = 4
MOST_WAITING = 500  # then looks wait, so that an API server that is slow does not fill the memory
LAST_S = 0.5  # for those that wait when the operator stops; its successor waits too

log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    chain: dict[str, Any]
    event: ChainEvent
    at: datetime


class Events:
    """The Events that are to be created. Without `run`, `send` creates them itself."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._runs = False
        self._line: asyncio.Queue[_Waiting] = asyncio.Queue(MOST_WAITING)

    async def send(self, chain: dict[str, Any], event: ChainEvent) -> None:
        """Creates an Event, or leaves that to `run`."""
        waiting = _Waiting(chain, event, datetime.now(UTC))
        if self._runs:
            await self._line.put(waiting)
        else:
            await self._create(waiting)

    async def run(self) -> None:
        """Creates Events until it is cancelled, and then those that wait, if that does not take long."""
        self._runs = True
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._create_all())
        finally:
            self._runs = False
            rest = [self._line.get_nowait() for _ in range(self._line.qsize())]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_S):
                    await asyncio.gather(*map(self._create, rest))

    async def _create_all(self) -> None:
        while True:
            await self._create(await self._line.get())

    async def _create(self, waiting: _Waiting) -> None:
        chain, event, at = waiting
        try:
            await self._cluster.create_event(chain, event, at=at)
        except ApiError as error:
            name = f"{chain['metadata']['namespace']}/{chain['metadata']['name']}"
            log.warning("event not created", extra={"chain": name, "reason": event.reason, "error": error.message})
