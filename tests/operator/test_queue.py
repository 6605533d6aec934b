"""The work queue: each key is queued once, has one worker at a time, and no event is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from distillchain_operator import queue as queue_module
from distillchain_operator.queue import Urgency, WorkQueue

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


@pytest.mark.parametrize("at_once", [None, 8])
async def test_slow_work_in_several_namespaces_leaves_a_worker_to_another(
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
    worker = asyncio.create_task(queue.run(workers=16))
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


async def test_a_key_that_is_added_while_a_worker_has_it_stays_urgent():
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


async def most_at_once(*, at_once: int, workers: int) -> int:
    """How many keys are worked on at the same time if none ends."""
    running = 0

    async def work(_key: str) -> None:
        nonlocal running
        running += 1
        await asyncio.Event().wait()

    queue: WorkQueue[str] = WorkQueue(work, at_once=at_once)
    for number in range(20):
        queue.add(f"{number}")
    worker = asyncio.create_task(queue.run(workers=workers))
    await asyncio.sleep(0.5)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    return running


@pytest.mark.parametrize("slow_s, running", [(60, 3), (0.01, 8)])
async def test_few_keys_are_worked_on_at_once_besides_those_that_are_slow(
    slow_s: float, running: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue_module, "SLOW_S", slow_s)
    assert await most_at_once(at_once=3, workers=8) == running


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


class TwoSteps:
    """Work of which the second step gives way; `steps` says what was done, in order."""

    def __init__(self, *, at_once: int = 1) -> None:
        self.steps: list[str] = []
        self.blocked = asyncio.Event()
        self.blocks = False  # whether an urgent key keeps its worker until `blocked` is set
        self.queue: WorkQueue[str] = WorkQueue(self._work, at_once=at_once)

    async def _work(self, key: str) -> None:
        self.steps.append(f"begin {key}")
        if key == "chain":
            for number in range(3):
                self.queue.add(f"urgent-{number}", Urgency.FIRST)
            self.queue.add("other")
        elif self.blocks and key.startswith("urgent"):
            await self.blocked.wait()
        await self.queue.give_way(key)
        self.steps.append(f"end {key}")
        if key == self._last:
            self._done.set()

    def unblock(self) -> None:
        self.steps.append("unblocked")
        self.blocked.set()

    async def run(self, *, last: str) -> list[str]:
        """The steps until the key `last` is done."""
        self._last, self._done = last, asyncio.Event()
        self.queue.add("chain")
        await run_until(self.queue, self._done)
        return self.steps


async def test_what_can_wait_is_done_after_what_is_urgent_and_before_all_else():
    begins = [f"begin {key}" for key in ("chain", "urgent-0", "urgent-1", "urgent-2")]
    # The last one has nothing to wait for, and is done first.
    ends = [f"end {key}" for key in ("urgent-2", "chain", "urgent-0", "urgent-1")]
    assert await TwoSteps().run(last="other") == [*begins, *ends, "begin other", "end other"]


async def test_what_can_wait_is_not_done_beside_what_is_urgent_although_there_is_room():
    work = TwoSteps(at_once=8)
    work.blocks = True
    asyncio.get_running_loop().call_later(0.05, work.unblock)
    steps = await work.run(last="chain")
    assert steps.index("end chain") > steps.index("unblocked")


async def test_what_can_wait_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "ASIDE_S", 0.05)
    work = TwoSteps(at_once=8)
    work.blocks = True
    steps = await work.run(last="chain")
    assert not any(step.startswith("end urgent") for step in steps)


async def test_what_can_wait_does_not_wait_for_what_is_slow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "ASIDE_S", 60)
    monkeypatch.setattr(queue_module, "SLOW_S", 0.01)
    work = TwoSteps(at_once=8)
    work.blocks = True
    steps = await work.run(last="chain")
    assert "end chain" in steps
    assert not any(step.startswith("end urgent") for step in steps)


@pytest.mark.parametrize("aside_s, slow_s", [(0.01, 0.02), (0.02, 0.01)])
async def test_a_place_that_is_free_at_the_moment_when_the_time_is_over_is_used_once(
    aside_s: float, slow_s: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(queue_module, "ASIDE_S", aside_s)
    monkeypatch.setattr(queue_module, "SLOW_S", slow_s)
    mistakes: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    work = TwoSteps(at_once=8)
    work.blocks = True
    # Both times are over before the loop runs again.
    asyncio.get_running_loop().call_later(0.005, lambda: time.sleep(0.1))
    steps = await work.run(last="chain")
    assert (steps.count("begin chain"), mistakes) == (1, [])


async def test_a_key_that_has_given_way_is_worked_on_again_if_it_was_added_meanwhile():
    work = TwoSteps(at_once=8)
    work.blocks = True

    def add_and_unblock() -> None:
        work.queue.add("chain")
        work.unblock()

    asyncio.get_running_loop().call_later(0.05, add_and_unblock)
    steps = await work.run(last="other")
    await work.run(last="chain")
    chain = [step for step in steps if step.endswith(" chain")]
    assert chain[:3] == ["begin chain", "end chain", "begin chain"]


async def test_a_key_that_has_given_way_goes_on_at_once_if_it_has_become_urgent_itself(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(queue_module, "ASIDE_S", 60)
    monkeypatch.setattr(queue_module, "SLOW_S", 60)
    work = TwoSteps(at_once=8)
    work.blocks = True
    asyncio.get_running_loop().call_later(0.05, work.queue.add, "chain", Urgency.FIRST)
    steps = await work.run(last="chain")
    assert "unblocked" not in steps


async def test_keys_that_have_given_way_leave_workers_to_other_namespaces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "ASIDE_S", 0.01)
    monkeypatch.setattr(queue_module, "SLOW_S", 0.02)
    done, blocked = asyncio.Event(), asyncio.Event()
    writing = most = 0

    async def work(key: str) -> None:
        nonlocal writing, most
        if key == "fast/0":
            done.set()
        elif key == "first/0":
            await asyncio.sleep(0.05)
        else:
            await queue.give_way(key)
            writing += 1
            most = max(most, writing)
            await blocked.wait()

    queue: WorkQueue[str] = WorkQueue(work, group_of=namespace_of, at_once=8)
    queue.add("first/0", Urgency.FIRST)
    for number in range(40):
        queue.add(f"slow/{number}")
    asyncio.get_running_loop().call_later(0.5, queue.add, "fast/0", Urgency.FIRST)
    worker = asyncio.create_task(queue.run(workers=16))
    try:
        await asyncio.wait_for(done.wait(), timeout=5)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    assert 0 < most <= 8
