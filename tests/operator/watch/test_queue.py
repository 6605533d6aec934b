"""The work queue: each key is queued once, is never worked on twice at once, and no event is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from distillchain_operator.watch import queue as queue_module
from distillchain_operator.watch.queue import Urgency, WorkQueue
from running_queue import namespace_of, run_until


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


async def test_the_time_until_a_retry_doubles_and_begins_anew_after_a_success(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "MAX_BACKOFF_S", 3)
    waited: list[float] = []
    done = asyncio.Event()

    async def work(_: str) -> None:
        if len(waited) == 7:
            done.set()
        elif len(waited) == 5:
            waited.append(0)
            queue.add("a")
        else:
            raise ConnectionError("away")

    queue: WorkQueue[str] = WorkQueue(work)

    def again_at_once(key: str, delay_s: float) -> None:
        waited.append(delay_s)
        queue.add(key)

    monkeypatch.setattr(queue, "add_after", again_at_once)
    queue.add("a")
    await run_until(queue, done)
    assert waited == [0.5, 1, 2, 3, 3, 0, 0.5]


async def test_the_earlier_of_two_times_counts():
    due: list[float] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def work(_: str) -> None:
        due.append(loop.time())
        done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    for delay_s in (30, 0.01, 60):
        queue.add_after("a", delay_s)
    await run_until(queue, done)  # within ten seconds


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


async def test_slow_work_in_one_namespace_leaves_places_to_the_others():
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
    worker = asyncio.create_task(queue.run(places=16))
    await asyncio.wait_for(done.wait(), timeout=10)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    assert most == 8


@pytest.mark.parametrize("at_once", [None, 8])
async def test_slow_work_in_several_namespaces_leaves_a_place_to_another(
    at_once: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue_module, "SLOW_S", 0.01)
    done, blocked = asyncio.Event(), asyncio.Event()
    running: Counter[str] = Counter()

    async def work(key: str) -> None:
        running[namespace_of(key)] += 1
        if key.startswith("fast/"):
            done.set()
        else:
            await blocked.wait()

    queue: WorkQueue[str] = WorkQueue(work, group_of=namespace_of, at_once=at_once)
    worker = asyncio.create_task(queue.run(places=16))
    for number in range(20):
        for slow in ("a", "b", "c", "d"):
            queue.add(f"{slow}/{number}")
    await asyncio.sleep(0.5)
    queue.add("fast/0")
    try:
        await asyncio.wait_for(done.wait(), timeout=2)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    assert max(running.values()) <= 8


async def test_a_key_waits_for_those_that_are_more_urgent():
    seen: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if len(seen) == 6:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    for key in ("resync-1", "resync-2", "event-2"):
        queue.add(key, Urgency.LATER)
    for key in ("event-1", "event-2", "end-2"):
        queue.add(key)
    for key in ("end-1", "end-2"):
        queue.add(key, Urgency.FIRST)
    # It stays as urgent as it was.
    queue.add("event-1", Urgency.LATER)
    queue.add("end-1")
    assert queue.depth == 6
    await run_until(queue, done)
    assert seen == ["end-1", "end-2", "event-1", "event-2", "resync-1", "resync-2"]


async def test_a_key_that_is_added_while_it_is_worked_on_stays_urgent():
    seen: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if seen == ["chain"]:
            queue.add("other")
            queue.add("chain", Urgency.FIRST)
            queue.add("chain", Urgency.LATER)
        if len(seen) == 3:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work, at_once=1)
    queue.add("chain")
    await run_until(queue, done)
    assert seen == ["chain", "chain", "other"]


async def most_at_once(*, at_once: int, places: int) -> int:
    """How many keys are worked on at the same time if none ends."""
    running = 0

    async def work(_key: str) -> None:
        nonlocal running
        running += 1
        await asyncio.Event().wait()

    queue: WorkQueue[str] = WorkQueue(work, at_once=at_once)
    for number in range(20):
        queue.add(f"{number}")
    worker = asyncio.create_task(queue.run(places=places))
    await asyncio.sleep(0.5)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    return running


@pytest.mark.parametrize("slow_s, running", [(60, 3), (0.01, 8)])
async def test_few_keys_are_worked_on_at_once_besides_those_that_are_slow(
    slow_s: float, running: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue_module, "SLOW_S", slow_s)
    assert await most_at_once(at_once=3, places=8) == running


async def test_keys_that_are_done_make_room_and_never_count_as_slow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "SLOW_S", 0.05)
    mistakes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    done = asyncio.Event()
    running = most = count = 0

    async def work(_key: str) -> None:
        nonlocal running, most, count
        running, count = running + 1, count + 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if count == 50:
            await asyncio.sleep(0.1)
            done.set()

    queue: WorkQueue[str] = WorkQueue(work, at_once=3)
    for number in range(50):
        queue.add(f"{number}")
    await run_until(queue, done)
    assert most <= 3
    assert not mistakes


async def test_after_the_end_nothing_begins_any_more():
    begun: list[str] = []

    async def work(key: str) -> None:
        begun.append(key)
        try:
            await asyncio.Event().wait()
        finally:
            queue.add("while it ends")

    queue: WorkQueue[str] = WorkQueue(work)
    queue.add("chain")
    queue.add_after("later", 0.05)
    running = asyncio.create_task(queue.run(places=4))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.1)
    assert (begun, queue.depth) == (["chain"], 1)
