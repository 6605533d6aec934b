"""A work queue of keys: each key is queued once, has one worker at a time, and is retried with exponential backoff.

A key that is added while a worker has it is processed again afterwards, so no event is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# A conflict (409) is over at the next read; an outage of the API server is not, so the delay doubles up to a minute.
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0

log = logging.getLogger(__name__)


class WorkQueue(Generic[Key]):
    """Keys that wait for a worker, and those that are due later.

    Args:
        work: processes one key; returns the seconds after which the key is due again without an event, or None.
    """

    def __init__(self, work: Callable[[Key], Awaitable[float | None]]) -> None:
        self._work = work
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in _ready
        self._busy: set[Key] = set()
        self._again: set[Key] = set()  # added while a worker has it
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._waiting)

    @property
    def failing(self) -> int:
        """Keys whose last run failed."""
        return len(self._failures)

    def add(self, key: Key) -> None:
        """Queues `key`."""
        if key in self._busy:
            # The worker may have read the chain before this event.
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: Key, delay_s: float) -> None:
        """Queues `key` in `delay_s`, unless it is due sooner already."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        # The earlier run returns the next delay itself, so the later timer is not needed.
        if known is not None and known.when() <= loop.time() + delay_s:
            return
        if known is not None:
            known.cancel()
        self._timers[key] = loop.call_later(delay_s, self._fire, key)

    def _fire(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def run(self, *, workers: int) -> None:
        """Processes keys until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._worker())
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            # No await between these lines, so `add` always finds the key in one of the two sets.
            self._waiting.discard(key)
            self._busy.add(key)
            try:
                delay_s = await self._work(key)
                self._failures.pop(key, None)
            except Exception as error:  # one chain must not stop the others
                failures = self._failures[key] = self._failures.get(key, 0) + 1
                # An outage of hours would make the exponent overflow a float; 2 ** 20 is far above the maximum.
                delay_s = min(FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 20), MAX_BACKOFF_S)
                log.warning(
                    "reconcile failed, will be retried",
                    extra={"key": str(key), "failures": failures, "delay_s": delay_s, "error": str(error)},
                    # The API server's own message says enough; a traceback is for our mistakes.
                    exc_info=not getattr(error, "is_expected", False),
                )
            finally:
                self._busy.discard(key)
            if delay_s is not None:
                self.add_after(key, delay_s)
            # After the key left `_busy`, or `add` would only note it again.
            if key in self._again:
                self._again.discard(key)
                self.add(key)
