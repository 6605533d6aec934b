"""Events are created beside the looks."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.controller import events as events_module
from distillchain_operator.controller.events import Events
from distillchain_operator.status.transitions import ChainEvent

MANY = 20
CHAIN = {"metadata": {"namespace": "ml", "name": "relay"}}


class Slow:
    """A Cluster that creates an Event when it may."""

    def __init__(self, *, refuses: str = "") -> None:
        self.may = asyncio.Event()
        self.refuses = refuses
        self.created: dict[str, datetime] = {}
        self.all_created = asyncio.Event()
        self.most_at_once = self._at_once = 0

    async def create_event(self, _chain: dict[str, Any], event: ChainEvent, *, at: datetime) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self.may.wait()
        self._at_once -= 1
        if event.reason == self.refuses:
            raise ApiError(403, "exceeded quota")
        self.created[event.reason] = at
        if len(self.created) == MANY:
            self.all_created.set()


async def send(events: Events, count: int) -> None:
    for number in range(count):
        await events.send(CHAIN, ChainEvent(f"event-{number}", "text"))


async def test_nothing_waits_for_an_event_and_it_has_the_time_at_which_it_was_sent():
    cluster = Slow()
    events = Events(cast("Cluster", cluster))
    running = asyncio.create_task(events.run())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await send(events, MANY)
    sent_by = datetime.now(UTC)
    await asyncio.sleep(0.05)
    assert not cluster.created
    cluster.may.set()
    async with asyncio.timeout(10):
        await cluster.all_created.wait()
    running.cancel()
    assert max(cluster.created.values()) <= sent_by
    assert cluster.most_at_once == events_module.AT_ONCE


async def test_a_full_line_makes_those_wait_who_send(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events_module, "MOST_WAITING", 3)
    cluster = Slow()
    events = Events(cast("Cluster", cluster))
    running = asyncio.create_task(events.run())
    await asyncio.sleep(0)
    sending = asyncio.create_task(send(events, MANY))
    await asyncio.sleep(0.05)
    assert not sending.done()
    cluster.may.set()
    async with asyncio.timeout(10):
        await sending
    running.cancel()


async def test_events_that_wait_when_the_operator_stops_are_created_if_it_does_not_take_long(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(events_module, "LAST_S", 10)
    cluster = Slow()
    events = Events(cast("Cluster", cluster))
    running = asyncio.create_task(events.run())
    await asyncio.sleep(0)
    await send(events, MANY)
    await asyncio.sleep(0.05)
    running.cancel()
    asyncio.get_running_loop().call_later(0.1, cluster.may.set)
    await asyncio.wait([running])
    # Those that were on the way are not tried again, because they may exist.
    assert len(cluster.created) == MANY - events_module.AT_ONCE


async def test_a_slow_api_server_does_not_keep_a_stopping_operator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events_module, "LAST_S", 0.1)
    events = Events(cast("Cluster", Slow()))
    running = asyncio.create_task(events.run())
    await asyncio.sleep(0)
    await send(events, MANY)
    running.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([running])


async def test_an_event_that_is_refused_is_logged_and_the_others_are_created(caplog: pytest.LogCaptureFixture):
    cluster = Slow(refuses="event-1")
    cluster.may.set()
    with caplog.at_level(logging.WARNING):
        await send(Events(cast("Cluster", cluster)), 3)
    assert list(cluster.created) == ["event-0", "event-2"]
    (record,) = caplog.records
    assert (record.chain, record.error) == ("ml/relay", "exceeded quota")  # type: ignore[attr-defined]
