"""A server in a thread of this process."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType
from typing import Self

POLL_S = 0.05  # how long the end of the block waits for the server; by default 0.5


class Serving:
    """Answers requests while the `with` block lasts."""

    def __init__(self, server: socketserver.BaseServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
