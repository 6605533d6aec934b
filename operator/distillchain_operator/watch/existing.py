"""Which chains exist, as the lists and watches of kopf show them: no other list of all chains is needed.

A watch reports everything that happens after a list, and after a gap kopf lists again. So this is what a list would
have, as long as the watches work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from distillchain_operator.api_server.connection import SILENCE_S
from distillchain_operator.chain_key import ChainKey


class ExistingChains:
    """The chains of the namespaces that are watched. One thread notes what it hears; others may ask.

    Args:
        namespaces: {None} for the whole cluster.
    """

    def __init__(self, namespaces: Collection[str | None], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._namespaces = frozenset(namespaces)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._listed: dict[str | None, set[ChainKey]] = {}
        self._pages: dict[str | None, set[ChainKey]] = {}  # of lists that are not complete
        self._heard_at: dict[str | None, float] = {}  # of namespaces that were listed

    def keys(self) -> set[ChainKey] | None:
        """All of them; None until each namespace was listed."""
        with self._lock:
            if self._listed.keys() != self._namespaces:
                return None
            return {key for keys in self._listed.values() for key in keys}

    def silent(self) -> set[str | None]:
        """The namespaces whose watch does not work, so that some of their chains may be unknown, and others deleted."""
        with self._lock:
            longest_ago = self._monotonic() - SILENCE_S
            return {namespace for namespace, heard_at in self._heard_at.items() if heard_at < longest_ago}

    def note_page(
        self, namespace: str | None, items: Collection[dict[str, Any]], *, is_first: bool, is_last: bool
    ) -> None:
        """A page of a list."""
        with self._lock:
            if is_first:
                self._pages[namespace] = set()
            page = self._pages.setdefault(namespace, set())
            page.update(_key_of(item) for item in items)
            if is_last:
                self._listed[namespace] = self._pages.pop(namespace)
                self._heard_at[namespace] = self._monotonic()

    def note_change(self, namespace: str | None, change: str, item: dict[str, Any]) -> None:
        """A change or bookmark that a watch sends, in the order of the watch."""
        with self._lock:
            if (listed := self._listed.get(namespace)) is None:
                return
            self._heard_at[namespace] = self._monotonic()
            if change == "ADDED":
                listed.add(_key_of(item))
            elif change == "DELETED":
                listed.discard(_key_of(item))


def _key_of(item: dict[str, Any]) -> ChainKey:
    metadata = item["metadata"]
    return ChainKey(sys.intern(metadata["namespace"]), metadata["name"])
