"""Whatever is added to the queue, fails, is slow or gives way, in any order: no key is lost, and none is worked on twice at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from distillchain_operator.watch import queue as queue_module
from distillchain_operator.watch.queue import Urgency, WorkQueue

EVENTS = (Urgency.LATER, Urgency.NOW, Urgency.FIRST)
KEYS = [f"{namespace}/{number}" for namespace in "abc" for number in range(6)]


class AnyWork:
    """Work of random length that gives way at times, and notes what it has seen."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.busy: set[str] = set()
        self.added: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()  # additions before the work on a key began the last time
        self.mistakes: list[object] = []
        self.has_place: Counter[str] = Counter()  # by namespace; what gives way is not counted
        self.at_once, self.places = self.rng.choice([1, 3, 8]), self.rng.choice([1, 4, 16])
        self.queue: WorkQueue[str] = WorkQueue(self._work, group_of=lambda key: key[0], at_once=self.at_once)

    def add(self, key: str) -> None:
        self.added[key] += 1
        self.queue.add(key, self.rng.choice(EVENTS))

    async def _work(self, key: str) -> float | None:
        if key in self.busy:
            self.mistakes.append(key)
        self.busy.add(key)
        self._enter(key)
        added = self.added[key]
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(self.rng.choice([0, 0, 0.001, 0.004]))
                if self.rng.random() < 0.5:
                    await self._give_way(key)
            if self.rng.random() < 0.1:
                raise ConnectionError("away")
        finally:
            self.has_place[key[0]] -= 1
            self.busy.discard(key)
        self.seen[key] = added
        return self.rng.choice([None, None, 0.001]) if self.rng.random() < 0.3 else None

    async def _give_way(self, key: str) -> None:
        self.has_place[key[0]] -= 1
        await self.queue.give_way(key)
        self._enter(key)

    def _enter(self, key: str) -> None:
        """A key has a place from now on."""
        self.has_place[key[0]] += 1
        most = self.places if queue_module.SLOW_S < 1 else min(self.places, self.at_once)
        # One namespace has half of the places, and one more if their number is odd.
        if self.has_place.total() > most or max(self.has_place.values()) > -(-most // 2):
            self.mistakes.append(dict(self.has_place))
        # As many may have given way, those included that have a place again and do not know it yet.
        if len(self.busy) > 2 * self.places:
            self.mistakes.append(set(self.busy))

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.mistakes.append(context))
        running = asyncio.create_task(self.queue.run(places=self.places))
        for _ in range(150):
            self.add(self.rng.choice(KEYS))
            if self.rng.random() < 0.3:
                await asyncio.sleep(self.rng.choice([0, 0.001]))
        for _ in range(2000):
            if self.seen == self.added and not (self.queue._busy or self.queue._timers):
                break
            await asyncio.sleep(0.005)
        assert (self.seen, running.done()) == (self.added, False)
        # Every place is free again, or the queue would stop one day.
        left = self.queue.depth, self.queue._places, self.queue._quick, self.queue._urgent, self.queue._aside
        assert left == (0, {}, {}, set(), {})
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("slow_s", [0.003, 60], ids=["some keys are slow", "no key counts as slow"])
@pytest.mark.parametrize("seed", range(8))
async def test_every_key_is_worked_on_after_it_was_added_and_never_twice_at_once(
    seed: int, slow_s: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue_module, "ASIDE_S", 0.002)
    monkeypatch.setattr(queue_module, "OVERDUE_S", 0.004)
    monkeypatch.setattr(queue_module, "SLOW_S", slow_s)
    monkeypatch.setattr(queue_module, "FIRST_BACKOFF_S", 0.001)
    work = AnyWork(seed)
    await work.run()
    assert not work.mistakes
