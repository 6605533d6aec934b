"""A TCP relay in front of a server. A test cuts its connections to simulate a network failure."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 65536
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close() sends RST


class CuttableRelay:
    """Relays 127.0.0.1:`port` to `target` (host and port of a URL) within the `with` block.

    Attributes:
        accepted: number of connections accepted so far.
    """

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        assert address.hostname
        assert address.port
        self._target = (address.hostname, address.port)
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self.port = 0
        self.accepted = 0

    def __enter__(self) -> Self:
        self.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cut(for_good=True)

    def cut(self, *, for_good: bool = False) -> None:
        """Reset every connection. With `for_good`, refuse new ones until `restore`."""
        if for_good and self._listener:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() would leave asleep
            self._listener.close()
            self._listener = None
        with self._lock:
            broken, self._open = self._open, []
        for connection in broken:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def restore(self) -> None:
        """Accept connections again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def write_kubeconfig(self, original: Path, path: Path, *, namespace: str) -> Path:
        """A copy of `original` that connects through this relay, with `namespace` as its default namespace."""
        document = json.loads(original.read_text())
        document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.port}"
        document["contexts"][0]["context"]["namespace"] = namespace
        path.touch(mode=0o600)
        path.write_text(json.dumps(document))
        return path

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # the listener was closed
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server is down: close the client's connection too
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
                self.accepted += 1
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
