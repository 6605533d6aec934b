"""SIGTERM and SIGINT end the stage at once, or during training at the end of the step; SIGUSR1 asks for a trace."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from distillchain_trainer.errors import StopRequested


class Signals:
    """Whether this process was asked to stop.

    Attributes:
        requested: a signal arrived.
        saved_step: step of the newest saved state, where the next attempt continues.
        on_stop: called in the signal handler, before anything is raised.
        on_trace: called in the handler of SIGUSR1.
    """

    def __init__(self) -> None:
        self.requested = False
        self.saved_step = 0
        self.on_stop: Callable[[], object] | None = None
        self.on_trace: Callable[[], object] | None = None
        self._deferred = 0
        self._wants_trace = False

    def install(self) -> None:
        """Installs the handlers, which only record signals until `obey` is called. Main thread only."""
        # A counter and not a flag, because deferred blocks may be nested.
        self._deferred += 1
        # SIGTERM comes from the kubelet and from the command line, SIGINT from Ctrl+C.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_trace)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # the launcher holds it back until here

    def obey(self) -> None:
        """From now on signals raise. Raises: StopRequested for a signal that was recorded since `install`."""
        self._deferred -= 1
        self.raise_if_requested()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        # Noted before it raises: code that catches the exception still sees that a stop was requested.
        self.requested = True
        if self.on_stop is not None:
            self.on_stop()
        if not self._deferred:
            raise StopRequested(self.saved_step)

    def _on_trace(self, _number: int, _frame: FrameType | None) -> None:
        self._wants_trace = True
        if self.on_trace is not None:
            self.on_trace()

    def take_trace_request(self) -> bool:
        """Whether a trace was asked for since the last call."""
        wanted, self._wants_trace = self._wants_trace, False
        return wanted

    def raise_if_requested(self) -> None:
        """For code that ran within `deferred`. Raises: StopRequested."""
        if self.requested:
            raise StopRequested(self.saved_step)

    def defer_for_good(self) -> None:
        """Signals no longer interrupt: the process is ending."""
        self._deferred += 1

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal only sets `requested`; the code there checks it, saves and raises StopRequested."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1
