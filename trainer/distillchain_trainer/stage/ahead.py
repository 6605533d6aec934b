"""Begins a download before its result is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(fetch: Callable[[], T], *, name: str) -> Callable[[], T]:
    """Calls `fetch` in a thread. Returns: a function that waits for the result, and raises what `fetch` raised.

    A process that ends does not wait for the thread. A signal ends the wait, as it ends a download.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(fetch())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return result.result
