"""A connection to an API server that has become silent is closed with all its sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.certificates import write_self_signed
from distillchain_operator.api_server.connection import Connection

ENDLESS = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"a": 1}\n\r\n'


class SilentServer:
    """Answers one request with the first bytes of a watch, or not at all, and then does nothing more."""

    def __init__(self, listening: socket.socket, trust: ssl.SSLContext, *, answers: bool) -> None:
        self._listening, self._trust, self._answers = listening, trust, answers
        self.port: int = listening.getsockname()[1]
        self.was_asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._held: ssl.SSLSocket | None = None

    def serve(self) -> None:
        accepted, _ = self._listening.accept()
        self._held = self._trust.wrap_socket(accepted, server_side=True)
        self._held.recv(4096)
        if self._answers:
            self._held.sendall(ENDLESS)
        self._loop.call_soon_threadsafe(self.was_asked.set)

    def close(self) -> None:
        if self._held:
            self._held.close()


@pytest.fixture(params=[False, True], ids=["a request", "a watch"])
async def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SilentServer]:
    pair = write_self_signed(tmp_path, hosts=["127.0.0.1"])
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(pair.certificate, pair.key)
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as threads:
        silent = SilentServer(listening, trust, answers=request.param)
        cluster = {"server": f"https://127.0.0.1:{silent.port}", "certificate-authority": str(pair.certificate)}
        content = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "c",
        }
        (tmp_path / "config").write_text(json.dumps(content))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        served = threads.submit(silent.serve)
        yield silent
        served.result()
        silent.close()


def sockets_to(port: int) -> int:
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    # The third column is the remote address; an inode of 0 belongs to no process.
    return sum(row[2].endswith(f":{port:04X}") and row[9] != "0" for row in rows)


async def test_a_cancelled_request_leaves_no_socket_behind_a_closed_connection(server: SilentServer):
    async with asyncio.timeout(20):
        connection = await Connection.open(answered=lambda *_: None)

        async def ask() -> None:
            async for _ in connection.watch("/version", {}):
                pass

        asking = asyncio.create_task(ask())
        await server.was_asked.wait()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        assert sockets_to(server.port) == 1  # asyncio waits for the server's goodbye
        await connection.close()
    assert sockets_to(server.port) == 0
