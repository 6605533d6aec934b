"""Chains as they were read or written last, what watches report of them, and when a look at them is due.

A watch also reports the operator's own writes of status, which are no reason to look at a chain again.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from distillchain_operator.caches.children import version_of
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey

UNPACKED = 256  # of each chain 20 KB as text, and five times as much as Python objects


class KnownChains:
    """What one operator knows of chains. Every decision about a Job is made on a fresh read."""

    def __init__(self, finished: FinishedChains, *, monotonic: Callable[[], float]) -> None:
        self._finished = finished
        self._monotonic = monotonic
        self._versions: dict[ChainKey, int] = {}
        self._documents = _Documents()
        self._reported: dict[ChainKey, int] = {}  # the newest version
        self._changed: set[ChainKey] = set()  # chains whose Jobs or pods have changed, or that have to be looked at
        self._due_at: dict[ChainKey, float] = {}

    def note(self, key: ChainKey, document: dict[str, Any]) -> None:
        """A chain was read, or its status written."""
        self._versions[key] = version_of(document)
        metadata = {name: value for name, value in document["metadata"].items() if name != "managedFields"}
        self._documents.put(key, {**document, "metadata": metadata})

    def get(self, key: ChainKey) -> dict[str, Any] | None:
        """The chain; None if it has to be read."""
        return self._documents.get(key)

    def report(self, key: ChainKey, version: int | None) -> bool:
        """Notes what a watch reports; says whether it may be a reason to look.

        Args:
            version: of the chain; None if one of its Jobs or pods was reported.
        """
        if version is None:
            self._changed.add(key)
            return True
        if version <= self._versions.get(key, 0):
            return False
        # A watch may be faster than the answer to our own write, so each look begins with `take_news`.
        self._reported[key] = max(version, self._reported.get(key, 0))
        return True

    def listed(self, key: ChainKey, version: int) -> None:
        """The chain is in a list of all chains, and is looked at although nothing was reported."""
        # The report of a change may have been lost. After etcd was restored from a backup, the version may be lower.
        if version != self._versions.get(key):
            self._versions.pop(key, None)
            self._documents.drop(key)
        self._changed.add(key)

    def take_news(self, key: ChainKey) -> bool:
        """Whether something is a reason to look at a chain: a report, or that a look is due."""
        reported, changed = self._reported.pop(key, None), key in self._changed
        self._changed.discard(key)
        if reported is not None and reported > self._versions.get(key, 0):
            self._documents.drop(key)
            return True
        # Without any report, the queue tries again, or the look is the first.
        return changed or reported is None or self.due_in(key) == 0

    def looked(self, key: ChainKey, due_s: float | None) -> None:
        """A look has ended, and the next one is due in some seconds, or only after a report."""
        self._due_at.pop(key, None)
        if due_s is not None:
            self._due_at[key] = self._monotonic() + due_s

    def due_in(self, key: ChainKey) -> float | None:
        """Seconds until the next look is due; None: only after a report."""
        return max(self._due_at[key] - self._monotonic(), 0) if key in self._due_at else None

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted, or a look has failed: the next report is a reason to look, whatever it is."""
        for memory in (self._versions, self._reported, self._due_at):
            memory.pop(key, None)
        self._documents.drop(key)
        self._changed.discard(key)

    def prune(self, existing: set[ChainKey]) -> set[ChainKey]:
        """Keeps only chains that exist, and of those that have finished only the version. Returns: the others."""
        gone = self._versions.keys() - existing
        for key in gone:
            self.forget(key)
        self._documents.drop_all(self._finished)
        return gone


class _Documents:
    """Chains: those that were used last as objects, the others as compressed text. Nobody may change them."""

    def __init__(self) -> None:
        self._recent: OrderedDict[ChainKey, dict[str, Any]] = OrderedDict()
        self._packed: dict[ChainKey, bytes] = {}

    def put(self, key: ChainKey, document: dict[str, Any]) -> None:
        self.drop(key)
        self._recent[key] = document
        if len(self._recent) > UNPACKED:
            oldest, unused = self._recent.popitem(last=False)
            self._packed[oldest] = zlib.compress(json.dumps(unused).encode(), 1)

    def get(self, key: ChainKey) -> dict[str, Any] | None:
        if key in self._packed:
            self.put(key, dict(json.loads(zlib.decompress(self._packed[key]))))
        elif key in self._recent:
            self._recent.move_to_end(key)
        return self._recent.get(key)

    def drop(self, key: ChainKey) -> None:
        self._recent.pop(key, None)
        self._packed.pop(key, None)

    def drop_all(self, finished: FinishedChains) -> None:
        for key in [key for key in (*self._recent, *self._packed) if key in finished]:
            self.drop(key)
