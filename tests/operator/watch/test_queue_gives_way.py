"""Work that can wait gives way to keys that are urgent, and takes places by the same rules as other work."""

from __future__ import annotations

import asyncio
import time

import pytest

from distillchain_operator.watch import queue as queue_module
from distillchain_operator.watch.queue import Urgency, WorkQueue
from running_queue import namespace_of, run_until


class TwoSteps:
    """Work of which the second step gives way; `steps` says what was done, in order."""

    def __init__(self, *, at_once: int = 1) -> None:
        self.steps: list[str] = []
        self.blocked = asyncio.Event()
        self.blocks = False  # whether an urgent key keeps its place until `blocked` is set
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
        if self.steps.count(f"end {self._last}") == self._times:
            self._done.set()

    def unblock(self) -> None:
        self.steps.append("unblocked")
        self.blocked.set()

    async def run(self, *, last: str, times: int = 1) -> list[str]:
        """The steps until the key `last` is done so many times."""
        self._last, self._times, self._done = last, times, asyncio.Event()
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
    steps = await work.run(last="chain", times=2)
    chain = [step for step in steps if step.endswith(" chain")]
    assert chain == ["begin chain", "end chain"] * 2


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


async def test_a_key_that_became_urgent_while_it_was_worked_on_does_not_give_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "ASIDE_S", 60)
    monkeypatch.setattr(queue_module, "SLOW_S", 60)
    done, blocked = asyncio.Event(), asyncio.Event()

    async def work(key: str) -> None:
        if key == "urgent":
            await blocked.wait()
        queue.add("chain", Urgency.FIRST)
        await queue.give_way("chain")
        done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    queue.add("urgent", Urgency.FIRST)
    queue.add("chain")
    await run_until(queue, done)


async def test_keys_that_have_given_way_go_on_as_soon_as_the_last_urgent_one_gives_way_itself(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(queue_module, "ASIDE_S", 60)
    monkeypatch.setattr(queue_module, "SLOW_S", 60)
    done, written = asyncio.Event(), asyncio.Event()

    async def work(key: str) -> None:
        if key == "urgent":
            await asyncio.sleep(0.05)
        await queue.give_way(key)
        if key == "urgent":
            await written.wait()  # its own status
        else:
            done.set()

    queue: WorkQueue[str] = WorkQueue(work)
    queue.add("urgent", Urgency.FIRST)
    queue.add("chain")
    await run_until(queue, done)


async def test_a_key_that_is_overdue_goes_before_all_urgent_ones_of_its_namespace(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue_module, "ASIDE_S", 0.02)
    monkeypatch.setattr(queue_module, "OVERDUE_S", 0.05)
    done, jobs = asyncio.Event(), 0

    async def work(key: str) -> None:
        nonlocal jobs
        if key == "ml/chain":
            await queue.give_way(key)
            done.set()
        else:
            await asyncio.sleep(0.01)
            jobs += 1

    queue: WorkQueue[str] = WorkQueue(work, group_of=namespace_of, at_once=2)
    queue.add("ml/first", Urgency.FIRST)
    queue.add("ml/chain", Urgency.FIRST)
    for number in range(500):
        queue.add(f"ml/{number}", Urgency.FIRST)
    await run_until(queue, done)
    assert jobs < 100


async def test_keys_that_have_given_way_leave_places_to_other_namespaces(monkeypatch: pytest.MonkeyPatch):
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
    await run_until(queue, done, places=16)
    assert 0 < most <= 8
