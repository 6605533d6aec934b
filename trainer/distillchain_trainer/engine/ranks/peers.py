"""What the processes of a stage tell each other outside of collectives: who has arrived, who has failed, and documents.

A wait here has no limit, can be interrupted by a signal, and ends when another process reports its failure. So rank 0
may upload for half an hour while the others wait, which in a collective would count as a fault.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from distillchain_trainer.errors import LostPeers

FAILURE = "failure"
LEFT = "left"
FIRST_POLL_S, LAST_POLL_S = 0.001, 0.1
POLL_S_PER_RANK = 0.0005  # 2,000 requests per second at most, however many ranks ask
# Rank 0 holds the store: time for the others to read its last entries. Shorter than FAIL_S of the launcher, after which
# it stops ranks that have not ended by themselves.
LINGER_S = 3.0


class KeyValues(Protocol):
    """As much of torch.distributed.Store as is used here. Every method raises RuntimeError when rank 0 is gone."""

    def set(self, key: str, value: str, /) -> None:
        """Writes a value."""

    def get(self, key: str, /) -> bytes:
        """Reads a value that is there."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys have a value."""

    def add(self, key: str, amount: int, /) -> int:
        """Adds to a counter. Returns: its value."""


@dataclass
class Peers:
    """The other processes of the stage. All ranks make the same calls of `meet` and `document_of` in the same order.

    Attributes:
        store: is held by rank 0.
        calls: how many calls this rank has made, which names the keys of each.
    """

    store: KeyValues
    rank: int
    size: int
    calls: int = 0

    def meet(self, what: str, *, within_s: float | None = None) -> None:
        """Returns when all ranks have called it. Raises: LostPeers, also if that takes longer than `within_s`."""
        key = self._next_key()
        with self._reaching(what):
            if self.store.add(f"{key}/arrived", 1) == self.size:
                self.store.set(f"{key}/all", "")
            self._wait_for(f"{key}/all", within_s=within_s)

    def document_of(self, source: int, build: Callable[[], str], what: str) -> str:
        """What `build` returns on rank `source`, which alone calls it, and does not wait for the others.

        Args:
            source: may differ between ranks, as long as each source names itself.
        Raises: LostPeers.
        """
        key = f"{self._next_key()}/{source}"
        if self.rank == source:
            # torch's store refuses a lone surrogate, which a file name or a text of the user may hold.
            document = build().encode(errors="replace").decode()
            with self._reaching(what):
                self.store.set(key, document)
            return document
        with self._reaching(what):
            self._wait_for(key)
            return self.store.get(key).decode()

    def fail(self, description: str) -> None:
        """Reports that this rank ends. The others see the first report only: later ones are consequences."""
        with contextlib.suppress(RuntimeError):  # rank 0 is gone, which the others notice by themselves
            if self.store.add(f"{FAILURE}/reports", 1) == 1:
                self.store.set(FAILURE, json.dumps({"rank": self.rank, "description": description}))

    def leave(self) -> None:
        """The end of every rank. Rank 0 waits for the others, which may still have to read from its store."""
        with contextlib.suppress(RuntimeError):
            left, deadline = self.store.add(LEFT, 1), time.monotonic() + LINGER_S
            while self.rank == 0 and left < self.size and time.monotonic() < deadline:
                time.sleep(LAST_POLL_S / 2)
                left = self.store.add(LEFT, 0)

    def has_report(self) -> bool:
        """Whether a rank has reported that it failed."""
        try:
            return self.store.check([FAILURE])
        except RuntimeError:
            return False

    def raise_failure(self) -> None:
        """Raises: LostPeers when another rank has reported that it failed."""
        if self.store.check([FAILURE]):
            failure = json.loads(self.store.get(FAILURE))
            if failure["rank"] != self.rank:
                raise LostPeers(f"rank {failure['rank']} of {self.size} ended: {failure['description']}")

    def lost(self, what: str, since_s: float | None) -> LostPeers:
        """The error for a collective or request that failed: the failure that a rank has reported, if there is one."""
        try:
            self.raise_failure()
        except LostPeers as reported:
            return reported
        except RuntimeError:  # rank 0 is gone, and its store with it
            pass
        waited = "" if since_s is None else f", after {time.monotonic() - since_s:.0f} s"
        return LostPeers(f"lost the other processes of the stage: rank {self.rank} of {self.size}, {what}{waited}")

    def _next_key(self) -> str:
        self.calls += 1
        return str(self.calls)

    def _wait_for(self, key: str, *, within_s: float | None = None) -> None:
        # Polled, because a wait within the store could not be interrupted by a signal or watch for a failure.
        pause_s, longest_s = FIRST_POLL_S, max(LAST_POLL_S, POLL_S_PER_RANK * self.size)
        since_s = time.monotonic()
        while not self.store.check([key]):
            self.raise_failure()
            if within_s is not None and time.monotonic() - since_s > within_s:
                raise RuntimeError(f"{key} was not written in time")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    @contextlib.contextmanager
    def _reaching(self, what: str) -> Iterator[None]:
        since_s = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            raise self.lost(what, since_s) from error
