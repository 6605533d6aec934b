"""All chains as one stream of an API server that can send it, and in pages of an older one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Unpack, cast

import pytest

from distillchain_operator.api_server.cluster import INITIAL_EVENTS_END, ApiError, Cluster
from distillchain_operator.api_server.connection import Connection, Content

END = {"type": "BOOKMARK", "object": {"metadata": {"annotations": {INITIAL_EVENTS_END: "true"}}}}


def added(name: str) -> dict[str, Any]:
    return {"type": "ADDED", "object": {"metadata": {"name": name}}}


class FakeConnection:
    """Sends these changes or the error as a stream, and one page."""

    def __init__(self, *changes: dict[str, Any], refusal: ApiError | None = None) -> None:
        self.changes, self.refusal = changes, refusal

    async def watch(self, path: str, query: dict[str, str]) -> AsyncGenerator[dict[str, Any]]:
        if self.refusal is not None:
            raise self.refusal
        for change in self.changes:
            yield change

    async def request(self, method: str, path: str, **content: Unpack[Content]) -> dict[str, Any]:
        return {"metadata": {}, "items": [added("of a page")["object"]]}


async def names(connection: FakeConnection) -> list[str]:
    chains = Cluster(cast("Connection", connection)).list_chains("ml")
    return [chain["metadata"]["name"] async for chain in chains]


async def test_the_stream_ends_with_the_last_of_the_chains_that_exist():
    assert await names(FakeConnection(added("one"), added("two"), END, added("new"))) == ["one", "two"]


@pytest.mark.parametrize("status", [400, 422, 504])
async def test_an_api_server_that_cannot_send_the_stream_sends_pages(status: int):
    assert await names(FakeConnection(refusal=ApiError(status, "sendInitialEvents is forbidden"))) == ["of a page"]


@pytest.mark.parametrize(
    "changes, status",
    [([added("one")], 0), ([added("one"), {"type": "ERROR", "object": {"code": 500}}], 500)],
    ids=["a connection that ends", "an error"],
)
async def test_a_stream_that_breaks_off_is_no_complete_list(changes: list[dict[str, Any]], status: int):
    with pytest.raises(ApiError) as error:
        await names(FakeConnection(*changes))
    assert error.value.status == status
