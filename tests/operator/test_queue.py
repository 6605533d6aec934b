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


def namespace_of(key: str) -> str:
    return key.partition("/")[0]


async def test_a_burst_of_one_namespace_does_not_keep_the_others_waiting():
    seen: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if len(seen) == 103:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work, group_of=namespace_of)
    for number in range(100):
        queue.add(f"many/{number}")
    for key in ("a/0", "a/1", "b/0"):
        queue.add(key)
    await run_until(queue, done)
    assert {"a/0", "a/1", "b/0"} <= set(seen[:6])
    assert [key for key in seen if key.startswith("many/")] == [f"many/{number}" for number in range(100)]


async def test_slow_work_in_one_namespace_leaves_workers_to_the_others():
    done, blocked = asyncio.Event(), asyncio.Event()
    most = running = 0

    async def work(key: str) -> None:
        nonlocal most, running
        if key.startswith("fast/"):
            done.set()
            return
        running += 1
        most = max(most, running)
        await blocked.wait()

    queue: WorkQueue[str] = WorkQueue(work, group_of=namespace_of)
    for number in range(20):
        queue.add(f"slow/{number}")
    queue.add("fast/0")
    worker = asyncio.create_task(queue.run(workers=16))
    await asyncio.wait_for(done.wait(), timeout=10)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert most == 8


async def test_slow_work_in_several_namespaces_leaves_a_worker_to_another():
    done, blocked = asyncio.Event(), asyncio.Event()

    async def work(key: str) -> None:
        if key.startswith("fast/"):
            done.set()
        else:
            await blocked.wait()

    queue: WorkQueue[str] = WorkQueue(work, group_of=namespace_of)
    worker = asyncio.create_task(queue.run(workers=16))
    for number in range(20):
        for slow in ("a", "b", "c", "d"):
            queue.add(f"{slow}/{number}")
    await asyncio.sleep(0.05)
    queue.add("fast/0")
    try:
        await asyncio.wait_for(done.wait(), timeout=2)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def test_a_key_without_urgency_waits_for_the_others_until_it_becomes_urgent():
    seen: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if len(seen) == 4:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    for key in ("resync-1", "resync-2", "event-2"):
        queue.add(key, urgent=False)
    for key in ("event-1", "event-2"):
        queue.add(key)
    queue.add("event-1", urgent=False)
    assert queue.depth == 4
    await run_until(queue, done)
    assert seen == ["event-1", "event-2", "resync-1", "resync-2"]
