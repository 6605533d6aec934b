"""When the operator asks whether it may read a namespace."""

from __future__ import annotations

from typing import cast

import pytest

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.api_server.namespaces import MAX_PAUSE_S, Namespaces


class Asked:
    """A Cluster that refuses some namespaces, and a clock.

    Attributes:
        refused: HTTP codes by namespace.
        asked: when each question was asked.
    """

    def __init__(self, **refused: int) -> None:
        self.refused, self.now = refused, 1000.0
        self.asked: list[tuple[float, str]] = []
        self.namespaces = Namespaces(cast("Cluster", self), ["ml", "nlp"], monotonic=lambda: self.now)

    async def check_chains(self, namespace: str) -> None:
        self.asked.append((self.now - 1000, namespace))
        if namespace in self.refused:
            raise ApiError(self.refused[namespace], "no")

    async def pass_time(self, seconds: float) -> list[tuple[float, str]]:
        """Checks whenever a namespace is due. Returns: the questions."""
        end = self.now + seconds
        while (due_in_s := self.namespaces.due_in_s) is not None and self.now + due_in_s <= end:
            self.now += due_in_s
            await self.namespaces.check()
        self.now = end
        found, self.asked = self.asked, []
        return found


async def test_a_namespace_that_can_be_read_is_asked_once():
    cluster = Asked()
    assert await cluster.pass_time(3600) == [(0, "ml"), (0, "nlp")]
    assert cluster.namespaces.readable == {"ml", "nlp"}


async def test_a_namespace_that_cannot_be_read_is_asked_after_pauses_that_double_up_to_a_minute():
    cluster = Asked(nlp=403)
    assert await cluster.pass_time(250) == [(0, "ml"), *((at, "nlp") for at in (0, 2, 6, 14, 30, 62, 122, 182, 242))]
    assert cluster.namespaces.readable == {"ml"}
    del cluster.refused["nlp"]
    assert await cluster.pass_time(3600) == [(302, "nlp")]
    assert cluster.namespaces.readable == {"ml", "nlp"}


async def test_a_namespace_whose_watch_was_refused_is_asked_at_once_and_stays_readable_if_it_can_be_listed():
    cluster = Asked()
    await cluster.pass_time(10)
    cluster.namespaces.doubt("ml")
    assert cluster.namespaces.doubted.is_set()
    assert await cluster.pass_time(10) == [(10, "ml")]
    assert cluster.namespaces.readable == {"ml", "nlp"}
    cluster.refused["ml"] = 404
    cluster.namespaces.doubt("ml")
    assert await cluster.pass_time(3) == [(20, "ml"), (22, "ml")]
    assert cluster.namespaces.readable == {"nlp"}


async def test_while_the_api_server_is_away_every_namespace_stays_as_it_is():
    cluster = Asked(nlp=403)
    await cluster.pass_time(1)
    cluster.refused = {"ml": 0, "nlp": 503}
    cluster.namespaces.doubt("ml")
    await cluster.pass_time(60)
    assert cluster.namespaces.readable == {"ml"}
    cluster.refused = {}
    await cluster.pass_time(MAX_PAUSE_S)
    assert cluster.namespaces.readable == {"ml", "nlp"}


async def test_a_namespace_that_can_be_listed_but_not_read_is_listed_at_most_once_a_minute():
    """Each time it counts as readable again, the watches of all namespaces are started again."""
    cluster = Asked()
    await cluster.pass_time(1)
    questions = []
    for _ in range(3600):
        cluster.namespaces.note_refused("ml")
        questions += await cluster.pass_time(1)
    assert len(questions) <= 5 + 3600 / MAX_PAUSE_S


async def test_after_a_long_time_without_a_refusal_the_pause_is_short_again():
    cluster = Asked(ml=403)
    await cluster.pass_time(100)
    cluster.refused = {}
    await cluster.pass_time(1000)
    cluster.namespaces.note_refused("ml")
    assert cluster.namespaces.readable == {"nlp"}
    assert await cluster.pass_time(100) == [(1102, "ml")]
    assert cluster.namespaces.readable == {"ml", "nlp"}


async def test_a_token_that_is_not_accepted_is_reported_with_the_remedy(caplog: pytest.LogCaptureFixture):
    """That of a ServiceAccount that was deleted and created again."""
    cluster = Asked(ml=401, nlp=401)
    await cluster.namespaces.check()
    assert "delete the operator's pods" in caplog.records[0].__dict__["error"]
