"""What the user sees while a chain runs: what a view is, and the view of plain lines. It goes to stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TextIO

from distillchain_api.resource.status import StageStatus
from distillchain_api.wire import answer
from distillchain_cli.output.phrases import PROGRESS_INTERVAL_S, ending, sentence, warning_lines


class View(Protocol):
    """Shows a run."""

    def started(self, stage: str) -> None:
        """A trainer was started."""

    def progress(self, line: answer.Progress) -> None:
        """The running trainer printed a progress line."""

    def ended(self, entry: StageStatus) -> None:
        """A stage is committed, failed or stopped."""

    def note(self, text: str) -> None:
        """Something else that the user should know."""


class PlainView:
    """Prints lines. Progress of one phase is printed every few seconds, the first line of each phase always."""

    def __init__(
        self,
        stream: TextIO,
        *,
        metric: str,
        interval_s: float = PROGRESS_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._metric, self._interval_s, self._clock = stream, metric, interval_s, clock
        self._shown: tuple[str, str] | None = None
        self._shown_at = 0.0

    def started(self, stage: str) -> None:
        """See View."""
        self._shown = None
        self.note(f"stage {stage}: started")

    def progress(self, line: answer.Progress) -> None:
        """See View."""
        now = self._clock()
        # The trainer prints several lines per second; a log file of a long run should stay readable.
        if self._shown == (line.stage, line.phase) and now - self._shown_at < self._interval_s:
            return
        self._shown, self._shown_at = (line.stage, line.phase), now
        self.note(f"stage {line.stage}: {sentence(line)}")

    def ended(self, entry: StageStatus) -> None:
        """See View."""
        self.note(f"stage {entry.name}: {ending(entry, self._metric)}")
        for line in warning_lines(entry):
            self.note(line)

    def note(self, text: str) -> None:
        """See View."""
        print(text, file=self._stream, flush=True)
