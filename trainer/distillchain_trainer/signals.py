"""SIGTERM and SIGINT: at once outside of training, at the end of the step within it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from distillchain_trainer.errors import StopRequested


class Signals:
    """Whether this process was told to stop.

    Attributes:
        requested: a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = 0

    def install(self) -> None:
        """From now on the signals are ours; only in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise StopRequested

    def defer_for_good(self) -> None:
        """The ending has begun: nothing interrupts it any more."""
        self._deferred += 1

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `requested`: who works there looks, saves and raises StopRequested."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
