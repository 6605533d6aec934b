"""Runs our trainer as its container does, and notes when it says what. Stops it when enough has been measured."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from distillchain_api.wire.work_order import TERMINATION_PATH_ENV, WORK_DIRECTORY_ENV, WORK_ORDER_ENV, WorkOrder

KILL_AFTER_S = 20.0  # from SIGTERM to SIGKILL: a trainer saves its state meanwhile
TAIL_LINES = 30
LOG_LINE = re.compile(r"\S+ (?P<level>INFO|WARNING|ERROR) [\w.]+: (?P<text>.*)")
FIELD = re.compile(r" (\w+)=(\S*)")


@dataclass(frozen=True)
class ProgressLine:
    """A line of a training: when it came, counted from the start of the process, and what it says."""

    at_s: float
    phase: str
    step: int
    epoch: float | None
    loss: float | None
    examples_per_second: float | None


@dataclass(frozen=True)
class LogLine:
    """A line of the log: its constant text, its fields, and all of it after the logger's name."""

    at_s: float
    level: str
    text: str
    fields: dict[str, str]
    whole: str


@dataclass
class Observed:
    """What a trainer said until it ended.

    Attributes:
        ended: "committed", "failed", "stopped after the measurement" or "stopped at the time limit".
    """

    progress: list[ProgressLine] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    started_at: float = 0.0
    wall_s: float = 0.0
    exit_code: int | None = None
    ended: str = ""

    def training(self) -> list[ProgressLine]:
        return [line for line in self.progress if line.phase == "Train"]

    def logged(self, text: str) -> LogLine | None:
        """The first line of the log with that text."""
        return next((line for line in self.log if line.text == text), None)


def run_trainer(
    order: WorkOrder, folder: Path, *, limit_s: float, enough: Callable[[Observed, float], bool]
) -> Observed:
    """Starts a trainer and waits for its end.

    Args:
        limit_s: after which it is stopped; it saves its state then.
        enough: asked every half second with the seconds since the start; if true, the trainer is killed.
    """
    seen = Observed(started_at=time.monotonic())
    lines: queue.Queue[tuple[float, bool, str]] = queue.Queue()
    process = subprocess.Popen(
        [sys.executable, "-m", "distillchain_trainer"],
        env=_environment(order, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that the workers of a compiler are ended with it
    )
    readers = [
        threading.Thread(target=_read, args=(stream, is_progress, seen.started_at, lines), daemon=True)
        for stream, is_progress in ((process.stdout, True), (process.stderr, False))
    ]
    for reader in readers:
        reader.start()
    try:
        _watch(process, seen, lines, limit_s=limit_s, enough=enough)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        seen.exit_code = process.wait()
    seen.wall_s = time.monotonic() - seen.started_at
    for reader in readers:
        reader.join(5)
    _take(lines, seen)
    seen.ended = seen.ended or ("committed" if seen.exit_code == 0 else "failed")
    return seen


def _watch(
    process: subprocess.Popen[str],
    seen: Observed,
    lines: queue.Queue[tuple[float, bool, str]],
    *,
    limit_s: float,
    enough: Callable[[Observed, float], bool],
) -> None:
    """Returns when the process has ended, or should be killed."""
    while process.poll() is None:
        time.sleep(0.05)
        _take(lines, seen)
        now_s = time.monotonic() - seen.started_at
        if not seen.ended and enough(seen, now_s):
            seen.ended = "stopped after the measurement"
            return
        if not seen.ended and now_s > limit_s:
            seen.ended = "stopped at the time limit"
            process.send_signal(signal.SIGTERM)
        if seen.ended and now_s > limit_s + KILL_AFTER_S:
            return


def _environment(order: WorkOrder, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        WORK_ORDER_ENV: order.to_json(),
        TERMINATION_PATH_ENV: str(folder / "termination"),
        WORK_DIRECTORY_ENV: str(folder / "work"),
        "HF_HUB_OFFLINE": "1",
    }


def _read(stream: IO[str], is_progress: bool, started_at: float, lines: queue.Queue[tuple[float, bool, str]]) -> None:
    for line in stream:
        lines.put((time.monotonic() - started_at, is_progress, line.rstrip("\n")))


def _take(lines: queue.Queue[tuple[float, bool, str]], seen: Observed) -> None:
    while not lines.empty():
        at_s, is_progress, line = lines.get()
        if is_progress:
            progress = read_progress(at_s, line)
            if progress is not None:
                seen.progress.append(progress)
            continue
        seen.tail = [*seen.tail[1 - TAIL_LINES :], line]
        logged = read_log_line(at_s, line)
        if logged is not None:
            seen.log.append(logged)


def read_progress(at_s: float, line: str) -> ProgressLine | None:
    """A progress line; None for anything else on stdout."""
    try:
        document: Any = json.loads(line)
        if document["kind"] != "progress":
            return None
        names = ("epoch", "loss", "examplesPerSecond")
        return ProgressLine(at_s, document["phase"], document["step"], *(document.get(name) for name in names))
    except (ValueError, LookupError, TypeError):
        return None


def read_log_line(at_s: float, line: str) -> LogLine | None:
    """A line of the log; None for a traceback, or what a library has printed."""
    found = LOG_LINE.fullmatch(line)
    if found is None:
        return None
    whole = found["text"]
    first = FIELD.search(whole)
    text = whole[: first.start()] if first else whole
    return LogLine(at_s, found["level"], text, dict(FIELD.findall(whole)), whole)
