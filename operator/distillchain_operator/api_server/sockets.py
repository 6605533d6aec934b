"""The sockets of one HTTP session, so that none outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import weakref

import aiohttp


class OpenSockets:
    """Creates the sockets of a session's connector and closes those that are left when the session is closed.

    aiohttp closes a TLS connection that it gives up, as after a cancelled request, by saying goodbye and waiting for
    the server's answer. It forgets such a connection at once, so closing the session does not close it, and asyncio
    waits 30 s for a server that does not answer.
    """

    def __init__(self) -> None:
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def create(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A new socket; the `socket_factory` of a connector."""
        created = socket.socket(*address[:3])
        self._sockets.add(created)
        return created

    async def close(self) -> None:
        """Returns when all are closed, after a second at the latest. The session must be closed before."""
        for left in self._open():
            with contextlib.suppress(OSError):  # the server was faster
                # The transport, which owns the socket, closes it at the end of its data.
                left.shutdown(socket.SHUT_RDWR)
        for _ in range(100):
            if not self._open():
                return
            await asyncio.sleep(0.01)

    def _open(self) -> list[socket.socket]:
        return [each for each in self._sockets if each.fileno() >= 0]
