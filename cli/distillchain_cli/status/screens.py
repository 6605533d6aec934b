"""How `status -w` shows a chain: a live picture on a terminal, changed lines elsewhere, or documents."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live

from distillchain_api.resource.status import StageStatus
from distillchain_api.wire import answer
from distillchain_cli.api_server.chains import metric_name
from distillchain_cli.output.phrases import PROGRESS_INTERVAL_S, ending, sentence, warning_lines
from distillchain_cli.status.drawing import draw
from distillchain_cli.status.snapshot import Snapshot, progress_of
from distillchain_cli.status.view import headline


class Screen(Protocol):
    """Shows a chain."""

    def show(self, snapshot: Snapshot) -> None:
        """Takes the latest snapshot, at least once per second."""


class LiveScreen:
    """Draws over the last picture on a terminal. The final picture stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Refreshed by `show` alone. "crop": a picture higher than the terminal would scroll instead of being redrawn.
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> LiveScreen:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def show(self, snapshot: Snapshot) -> None:
        """See Screen."""
        self._live.update(draw(snapshot, self._console), refresh=True)


class LineScreen:
    """Prints a line for each change; progress at most every few seconds."""

    def __init__(self, print_line: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._print_line, self._clock = print_line, clock
        self._printed: dict[str, str] = {}
        self._progress_at: dict[tuple[str, str], float] = {}

    def __enter__(self) -> LineScreen:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, snapshot: Snapshot) -> None:
        """See Screen."""
        status, metric = snapshot.status, metric_name(snapshot.chain)
        if snapshot.disconnected:
            self._print("connection", f"reconnecting: {snapshot.disconnected}")
        elif "connection" in self._printed:
            self._print("connection", "connected again")
        self._print("chain", headline(snapshot.chain, status))
        for entry in status.entries:
            line = progress_of(entry) if entry.phase == "Running" else None
            # While a stage trains, its progress lines say enough, unless there is a message such as a retried crash.
            if line is None or entry.message:
                self._print(entry.name, f"stage {entry.name}: {stage_sentence(entry, metric)}")
            if line is not None and self._is_due(line):
                self._print(f"{entry.name} progress", f"stage {entry.name}: {sentence(line)}")
            for number, warning in enumerate(warning_lines(entry)):
                self._print(f"{entry.name} warning {number}", warning)

    def _is_due(self, line: answer.Progress) -> bool:
        key, now = (line.stage, line.phase), self._clock()
        if key in self._progress_at and now - self._progress_at[key] < PROGRESS_INTERVAL_S:
            return False
        self._progress_at[key] = now
        return True

    def _print(self, key: str, text: str) -> None:
        if self._printed.get(key) != text:
            self._printed[key] = text
            self._print_line(text)


def stage_sentence(entry: StageStatus, metric: str) -> str:
    """The state of a stage that does not train at the moment."""
    if entry.phase == "Committed":
        return ending(entry, metric)
    if entry.phase == "Failed":
        return f"failed: {entry.failure_class}: {entry.message}"
    return ": ".join(filter(None, (entry.phase.lower(), entry.message)))


class DocumentScreen:
    """Prints the status as a document whenever it has changed."""

    def __init__(self, print_document: Callable[[dict[str, Any]], None]) -> None:
        self._print_document = print_document
        self._printed: dict[str, Any] | None = None

    def __enter__(self) -> DocumentScreen:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, snapshot: Snapshot) -> None:
        """See Screen."""
        document = snapshot.chain.get("status") or {}
        if document != self._printed:
            self._printed = document
            self._print_document(document)
