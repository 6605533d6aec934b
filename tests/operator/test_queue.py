"""The work queue: each key is queued once, has one worker at a time, and no event is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from distillchain_operator.queue import WorkQueue

Work = Callable[[str], Awaitable[float | None]]


async def run_until(queue: WorkQueue[str], done: asyncio.Event) -> None:
    worker = asyncio.create_task(queue.run(workers=4))
    try:
        await asyncio.wait_for(done.wait(), timeout=10)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def test_a_key_that_is_added_many_times_is_processed_once():
    seen: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if key == "last":
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    for key in ("a", "a", "a", "last"):
        queue.add(key)
    await run_until(queue, done)
    assert seen == ["a", "last"]


async def test_a_key_that_is_added_while_it_is_processed_is_processed_again_afterwards():
    running = 0
    rounds = 0
    done = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal running, rounds
        running += 1
        assert running == 1
        rounds += 1
        if rounds == 1:
            queue.add(key)
        await asyncio.sleep(0)
        running -= 1
        if rounds == 2:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    queue.add("a")
    await run_until(queue, done)
    assert rounds == 2


async def test_a_failed_key_is_retried_and_does_not_stop_the_others():
    tries: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        tries.append(key)
        if key == "bad" and tries.count("bad") < 2:
            raise ConnectionError("away")
        if {"bad", "good"} <= set(tries) and tries.count("bad") == 2:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    queue.add("bad")
    queue.add("good")
    await run_until(queue, done)
    assert sorted(tries) == ["bad", "bad", "good"]


async def test_a_key_is_due_again_after_the_time_its_work_returned():
    tries = 0
    done = asyncio.Event()

    async def work(_: str) -> float | None:
        nonlocal tries
        tries += 1
        if tries == 3:
            done.set()
            return None
        return 0.01

    queue: WorkQueue[str] = WorkQueue(work)
    queue.add("a")
    await run_until(queue, done)
    assert tries == 3
