"""Requests to the API server of a test cluster, as its administrator."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from cluster.controlplane import ControlPlane

AT_ONCE = 24  # requests
_COUNT = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Api:
    """The API server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def send(
        self, method: str, path: str, body: dict[str, Any], *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """The answer to a request, which must succeed."""
        headers = {"Content-Type": content_type}
        async with self._session.request(method, self._url + path, data=json.dumps(body), headers=headers) as answer:
            document: dict[str, Any] = await answer.json()
            assert answer.status < 300, document
            return document

    async def get(self, path: str) -> dict[str, Any]:
        """An object or a list."""
        async with self._session.get(self._url + path) as answer:
            document: dict[str, Any] = await answer.json()
            assert answer.status == 200, document
            return document

    async def patch_status(self, path: str, status: dict[str, Any]) -> None:
        """Writes the status of an object."""
        body = {"status": status}
        await self.send("PATCH", f"{path}/status", body, content_type="application/merge-patch+json")

    async def watch(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """What happens to the objects of a kind, from now on."""
        query = {"watch": "true", "resourceVersion": "0"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(self._url + path, params=query, timeout=timeout) as answer:
            buffer = b""
            async for data in answer.content.iter_any():
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    async def count_requests(self) -> list[tuple[dict[str, str], float]]:
        """The requests that the API server has counted, by its labels."""
        async with self._session.get(f"{self._url}/metrics") as answer:
            text = await answer.text()
        return [(dict(_LABEL.findall(labels)), float(count)) for labels, count in _COUNT.findall(text)]


@asynccontextmanager
async def connected(control_plane: ControlPlane) -> AsyncIterator[Api]:
    """The API server of a control plane."""
    trust = ssl.create_default_context(cafile=str(control_plane.ca))
    folder = control_plane.ca.parent
    trust.load_cert_chain(folder / "admin.crt", folder / "admin.key")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=0)) as session:
        yield Api(session, control_plane.url)


async def run_all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs coroutines, some of them at the same time."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def limited(one: Coroutine[Any, Any, None]) -> None:
        async with slots:
            await one

    await asyncio.gather(*map(limited, work))


def chains_path(namespace: str) -> str:
    """Where the chains of a namespace are."""
    return f"/apis/distillchain.io/v1alpha1/namespaces/{namespace}/distillationchains"
