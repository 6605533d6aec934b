"""Wait for a condition with a deadline; on failure, report the state that was seen instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from cluster.errors import DidNotHappen

Seen = TypeVar("Seen")

POLL_S = 0.05  # for a probe that is a local call of a few milliseconds


def wait_until(
    what: str,
    probe: Callable[[], Seen | None],
    *,
    deadline_s: float,
    dump: Callable[[], str] = lambda: "",
    poll_s: float = POLL_S,
) -> Seen:
    """Call `probe` until it returns a true value; return that value.

    Args:
        what: the awaited state, as the end of the sentence "waited 10 s for ...".
        probe: an exception from it ends the wait.
        dump: returns the state for the message; called only when the deadline has passed.
        poll_s: pause between two calls of `probe`.
    Raises: DidNotHappen.
    """
    give_up_at = time.monotonic() + deadline_s
    while True:
        if seen := probe():
            return seen
        if time.monotonic() > give_up_at:
            raise DidNotHappen(f"waited {deadline_s:g} s for {what}\n{dump()}".rstrip())
        time.sleep(poll_s)
