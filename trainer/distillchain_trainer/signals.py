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
        saved_step: where a next attempt would go on: step of the newest state that is known to be saved.
    """

    def __init__(self) -> None:
        self.requested = False
        self.saved_step = 0
        self._deferred = 0

    def install(self) -> None:
        """From now on the signals are ours, and noted until `obey`; only in the main thread."""
        self._deferred += 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def obey(self) -> None:
        """Ends what `install` began. Raises: StopRequested, also for a signal that came in between."""
        self._deferred -= 1
        self.raise_if_requested()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise StopRequested(self.saved_step)

    def raise_if_requested(self) -> None:
        """For who worked within `deferred`. Raises: StopRequested."""
        if self.requested:
            raise StopRequested(self.saved_step)

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
