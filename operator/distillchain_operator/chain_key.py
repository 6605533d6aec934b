"""The key of a chain: what the queue holds, and what metrics and logs name."""

from __future__ import annotations

from typing import NamedTuple


class ChainKey(NamedTuple):
    """Which chain."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
