"""Which of its namespaces the operator may read: one may be deleted with its Role, or be created later.

A namespace that can be read is not asked again: its watch is refused when that has changed. One that cannot be read is
asked after pauses that grow. Without a list of namespaces, the ClusterRole covers all of them, which are asked as one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from distillchain_operator.api_server.cluster import ApiError, Cluster

FIRST_PAUSE_S = 2.0
MAX_PAUSE_S = 60.0
RECREATED_ACCOUNT = "; if the ServiceAccount was deleted and created again, delete the operator's pods"
UNREADABLE = (403, 404)  # no Role there (yet); the CRD is not installed (yet)

log = logging.getLogger(__name__)


class Namespaces:
    """The namespaces of the operator.

    Args:
        names: none for the whole cluster.
    Attributes:
        names: {None} for the whole cluster.
        readable: those whose chains could be listed.
        doubted: set when `doubt` or `note_refused` was called.
    """

    def __init__(
        self, cluster: Cluster, names: Sequence[str], *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster, self._monotonic = cluster, monotonic
        self.names: tuple[str | None, ...] = tuple(names) or (None,)
        self.readable: set[str | None] = set()
        self.doubted = asyncio.Event()
        self._due_at: dict[str | None, float] = dict.fromkeys(self.names, 0.0)
        self._refused: dict[str | None, tuple[float, float]] = {}  # when a namespace was refused last, and the pause

    @property
    def due_in_s(self) -> float | None:
        """Seconds until a namespace has to be asked; None if all can be read."""
        return max(min(self._due_at.values()) - self._monotonic(), 0) if self._due_at else None

    def doubt(self, name: str | None) -> None:
        """A watch was refused, so the namespace is asked at once. Until then it counts as readable."""
        if name in self.readable:
            self._due_at[name] = 0.0
            self.doubted.set()

    def note_refused(self, name: str | None) -> None:
        """Something in the namespace may not be read, so that what is known of it has to be listed again later."""
        if name in self.readable:
            self._refuse(name)
            self.doubted.set()

    async def check(self) -> None:
        """Asks the namespaces that are due."""
        self.doubted.clear()
        now = self._monotonic()
        for name in [name for name, due_at in self._due_at.items() if due_at <= now]:
            try:
                await self._cluster.check_chains(name)
            except ApiError as error:
                # Any other error says nothing about the namespace: the API server is away or overloaded.
                if error.status not in UNREADABLE:
                    why = f"{error.message}{RECREATED_ACCOUNT if error.status == 401 else ''}"
                    log.warning("waiting for the API server", extra={"status": error.status, "error": why})
                    for waiting in self._due_at:
                        self._due_at[waiting] = max(self._due_at[waiting], self._monotonic() + FIRST_PAUSE_S)
                    return
                log.info("namespace refused", extra={"namespace": name or "all", "error": error.message})
                self._refuse(name)
            else:
                self.readable.add(name)
                del self._due_at[name]

    async def wait(self) -> None:
        """Returns when one can be read."""
        while True:
            await self.check()
            if self.readable:
                return
            if self._refused:
                log.warning("waiting until chains can be listed; is the CRD installed, and is there a Role?")
            await asyncio.sleep(self.due_in_s or 0)

    def _refuse(self, name: str | None) -> None:
        now = self._monotonic()
        refused_at, pause_s = self._refused.get(name, (now, FIRST_PAUSE_S / 2))
        # Also when it could be read in between: a Role without a right that is needed must not restart the watches of
        # the other namespaces again and again.
        pause_s = min(2 * pause_s, MAX_PAUSE_S) if now - refused_at <= 2 * MAX_PAUSE_S else FIRST_PAUSE_S
        self._refused[name] = now, pause_s
        self._due_at[name] = now + pause_s
        self.readable.discard(name)
