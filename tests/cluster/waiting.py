"""Waiting for a condition, never for a while: a deadline that tells what was seen instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from cluster.errors import DidNotHappen

Seen = TypeVar("Seen")

POLL_S = 0.05  # a probe is a loopback call of some milliseconds; two cores stand twenty of them a second


def wait_until(
    what: str, probe: Callable[[], Seen | None], *, deadline_s: float, dump: Callable[[], str] = lambda: ""
) -> Seen:
    """The first truthy answer of `probe`.

    Args:
        what: the awaited state, as the end of the sentence "waited 10 s for ...".
        probe: asked every POLL_S; what it raises ends the waiting.
        dump: the state for the message, asked only when the deadline has passed.
    Raises: DidNotHappen.
    """
    give_up_at = time.monotonic() + deadline_s
    while True:
        if seen := probe():
            return seen
        if time.monotonic() > give_up_at:
            raise DidNotHappen(f"waited {deadline_s:g} s for {what}\n{dump()}".rstrip())
        time.sleep(POLL_S)
