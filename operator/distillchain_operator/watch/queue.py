"""A work queue of keys: each is queued once, is never worked on twice at once, and is retried with exponential backoff.

A key that is added while it is worked on is worked on again afterwards, so no event is lost. The number of places
limits how many are worked on at once. Keys belong to groups, which take turns: neither many keys of one group nor slow
ones keep the others waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable
from enum import IntEnum
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

# A conflict (409) is over at the next read; an outage of the API server is not, so the delay doubles up to a minute.
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 60.0
ASIDE_S = 1.0  # then the work on a key that has given way is as urgent as what it gave way to
OVERDUE_S = 4.0  # then it continues before all others
SLOW_S = 2.0  # work that takes longer waits for something else than this queue's share of the API server

log = logging.getLogger(__name__)


class Urgency(IntEnum):
    """How soon a key needs a place. A key waits while there are more urgent ones of the groups that may work.

    Events have the urgencies LATER, NOW and FIRST; the queue itself gives the others to keys that have given way.
    """

    LATER = 0  # nothing was reported
    NOW = 1
    YIELDED = 2
    FIRST = 3  # a GPU is idle until then
    OVERDUE = 4


class _Lanes(Generic[Key]):
    """Keys that wait, by urgency and in the order of their groups' turns."""

    def __init__(self, group_of: Callable[[Key], Hashable]) -> None:
        self._group_of = group_of
        self._lanes: dict[Urgency, dict[Hashable, deque[Key]]] = {urgency: {} for urgency in sorted(Urgency)[::-1]}
        self._urgency: dict[Key, Urgency] = {}

    def __len__(self) -> int:
        return len(self._urgency)

    def __contains__(self, key: Key) -> bool:
        return key in self._urgency

    def add(self, key: Key, urgency: Urgency) -> None:
        """Queues a key behind those of its group; a key that waits may become more urgent."""
        if (known := self._urgency.get(key)) is not None:
            if urgency <= known:
                return
            self._remove(self._lanes[known], key)
        self._urgency[key] = urgency
        self._lanes[urgency].setdefault(self._group_of(key), deque()).append(key)

    def has(self, urgency: Urgency) -> bool:
        """Whether a key waits that is so urgent."""
        return bool(self._lanes[urgency])

    def take(
        self, is_allowed: Callable[[Hashable], bool], *, without: Urgency | None = None
    ) -> tuple[Key, Urgency] | None:
        """The next key of the groups that are allowed; its group then goes to the end of the line."""
        for urgency, lane in self._lanes.items():
            if urgency is without:
                continue
            for group in filter(is_allowed, lane):
                key = lane[group][0]
                self._remove(lane, key)
                if group in lane:
                    lane[group] = lane.pop(group)
                del self._urgency[key]
                return key, urgency
        return None

    def _remove(self, lane: dict[Hashable, deque[Key]], key: Key) -> None:
        group = self._group_of(key)
        lane[group].remove(key)
        if not lane[group]:
            del lane[group]


class WorkQueue(Generic[Key]):
    """Keys that wait for a place, and those that are due later.

    Args:
        work: works on one key; returns the seconds after which the key is due again without an event, or None.
        group_of: the group of a key; without it, all keys are one group, which may use all places.
        at_once: how many keys are worked on at the same time, besides those that take longer than SLOW_S; None: as
            many as there are places.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[float | None]],
        *,
        group_of: Callable[[Key], Hashable] | None = None,
        at_once: int | None = None,
    ) -> None:
        self._work = work
        self._at_once = at_once
        self._group_of: Callable[[Key], Hashable] = group_of or (lambda _: None)
        self._shares = group_of is not None
        self._waiting: _Lanes[Key] = _Lanes(self._group_of)
        self._most = 0  # places; none until it runs
        self._start: Callable[[Key], object] = lambda _: None
        # Keys that are worked on. Each has a place, or has left it and is aside until it has one again.
        self._busy: set[Key] = set()
        self._places: Counter[Hashable] = Counter()  # by group
        self._aside: dict[Key, asyncio.Event] = {}
        self._quick: dict[Key, asyncio.TimerHandle] = {}  # those with a place that are not slow yet
        self._urgent: set[Key] = set()  # those with a place that are FIRST, not slow, and have not given way yet
        self._again: dict[Key, Urgency] = {}  # added while they are worked on
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}

    @property
    def depth(self) -> int:
        """Keys that wait for a place, those included that have given way."""
        return len(self._waiting)

    @property
    def failing(self) -> int:
        """Keys whose last run failed."""
        return len(self._failures)

    def add(self, key: Key, urgency: Urgency = Urgency.NOW) -> None:
        """Queues `key`."""
        if key in self._busy:
            # The work may have read the chain before this event.
            self._again[key] = max(urgency, self._again.get(key, urgency))
            if urgency is Urgency.FIRST:
                self._call_back(key, Urgency.OVERDUE)
        else:
            self._waiting.add(key, urgency)
            self._hand_out()

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

    async def give_way(self, key: Key) -> None:
        """Leaves the place of a key that is worked on until nothing that is FIRST is left to do.

        After ASIDE_S it waits in line with what is FIRST, and after OVERDUE_S it takes the next place of its group.
        What is left to do for this key is not urgent. If it has become FIRST itself meanwhile, it does not wait,
        because it is worked on again only afterwards.
        """
        self._urgent.discard(key)
        is_needed = self._urgent or self._waiting.has(Urgency.FIRST)
        is_urgent = self._again.get(key) is Urgency.FIRST
        if not is_needed or is_urgent or len(self._aside) >= self._most:
            self._hand_out()
            return
        self._leave_place(key)
        self._aside[key] = has_place = asyncio.Event()
        self._waiting.add(key, Urgency.YIELDED)
        loop = asyncio.get_running_loop()
        timers = [
            loop.call_later(ASIDE_S, self._call_back, key, Urgency.FIRST),
            loop.call_later(OVERDUE_S, self._call_back, key, Urgency.OVERDUE),
        ]
        self._hand_out()
        try:
            await has_place.wait()
        finally:
            for timer in timers:
                timer.cancel()

    def _call_back(self, key: Key, urgency: Urgency) -> None:
        """Makes a key more urgent if it is aside."""
        if key in self._aside:
            self._waiting.add(key, urgency)
            self._hand_out()

    async def run(self, *, places: int) -> None:
        """Works on keys, at most so many at once, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._most = places
                self._start = lambda key: group.create_task(self._process(key))
                self._hand_out()
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    self._most = 0  # nothing begins any more
        finally:
            for timer in [*self._timers.values(), *self._quick.values()]:
                timer.cancel()

    def _hand_out(self) -> None:
        """Gives free places to keys. No await in here, so `add` always finds a key waiting or busy."""
        while self._room() > 0:
            taken = self._waiting.take(self._may_work, without=Urgency.YIELDED if self._urgent else None)
            if taken is None:
                return
            key, urgency = taken
            self._places[self._group_of(key)] += 1
            self._quick[key] = asyncio.get_running_loop().call_later(SLOW_S, self._note_slow, key)
            if (has_place := self._aside.pop(key, None)) is not None:
                has_place.set()
                continue
            self._busy.add(key)
            if urgency is Urgency.FIRST:
                self._urgent.add(key)
            self._start(key)

    def _room(self) -> int:
        """How many further keys may be worked on."""
        idle = self._most - self._places.total()
        return idle if self._at_once is None else min(idle, self._at_once - len(self._quick))

    def _may_work(self, group: Hashable) -> bool:
        # A group gets a place while there is room for more than it has. So one has at most half of them, and webhooks
        # that are slow in several namespaces still leave a place to the others.
        return not self._shares or self._places[group] < self._room()

    def _leave_place(self, key: Key) -> None:
        group = self._group_of(key)
        if (quick := self._quick.pop(key, None)) is not None:
            quick.cancel()
        self._places[group] -= 1
        if not self._places[group]:
            del self._places[group]

    def _note_slow(self, key: Key) -> None:
        del self._quick[key]
        self._urgent.discard(key)  # it waits for something that the others cannot speed up
        self._hand_out()

    async def _process(self, key: Key) -> None:
        delay_s: float | None = None
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
        self._leave_place(key)
        self._busy.discard(key)
        self._urgent.discard(key)
        if delay_s is not None:
            self.add_after(key, delay_s)
        # After the key left `_busy`, or `add` would only note it again.
        if key in self._again:
            self.add(key, self._again.pop(key))
        self._hand_out()
