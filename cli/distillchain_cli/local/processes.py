"""One attempt of one stage: starts the trainer as a process and waits for it. Does not know chain or retries."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from distillchain_api.wire.answer import Committed, Failed, Interrupted, Progress, parse_answer, parse_progress
from distillchain_api.wire.work_order import (
    ATTEMPT_ENV,
    TERMINATION_PATH_ENV,
    WORK_DIRECTORY_ENV,
    WORK_ORDER_ENV,
    WorkOrder,
)
from distillchain_cli.local.trainers import TrainerProcess, Trainers

POLL_S = 0.1
KILL_AT_STOP = 3
GRACE_S = 120.0  # from SIGTERM to SIGKILL after a timeout, as for a Job's pods


class StopSignals:
    """Counts the requests to stop this process: Ctrl-C, SIGTERM, a closed terminal."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Counts the signals instead of being interrupted. A signal that was ignored, as under nohup, stays ignored."""
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        active = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in active}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.count:
            return  # shell and kernel both send SIGHUP for one closed terminal
        self.count += 1


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended.

    Attributes:
        exit_code: negative: the signal that killed the trainer.
        answer: the trainer's termination message; None if it wrote none.
        log: file with the trainer's stderr.
        timed_out: the trainer was stopped because its timeout had passed.
    """

    exit_code: int
    answer: Committed | Failed | Interrupted | None
    log: Path
    timed_out: bool = False


@dataclass(frozen=True)
class RunFolder:
    """The folder of logs and temporary files of a run."""

    path: Path

    def log(self, stage: str, attempt: int) -> Path:
        """File with the stderr of an attempt's trainer."""
        return self.path / f"{stage}-{attempt}.log"


def run_attempt(
    order: WorkOrder,
    attempt: int,
    folder: RunFolder,
    *,
    trainers: Trainers,
    stops: StopSignals,
    deadline_at: float | None,
    on_progress: Callable[[Progress], None],
    note: Callable[[str], None],
) -> AttemptResult:
    """Starts the trainer with a work order and waits for its end.

    A stop is passed on once, as SIGTERM: the trainer has its own session, so the terminal's Ctrl-C does not reach it
    too. Progress goes through a file, not a pipe: a trainer that outlives this process can still write and save.

    Args:
        deadline_at: value of time.monotonic() at which the trainer is stopped, and GRACE_S later killed; None: never.
    Raises: RunFailed when the trainer cannot be started.
    """
    termination = folder.path / f"{order.stage}-{attempt}.answer"
    progress = folder.path / f"{order.stage}.progress"
    work = folder.path / "work"
    # An answer of an earlier run in this folder must not count for this attempt.
    termination.unlink(missing_ok=True)
    environment = {
        **os.environ,
        WORK_ORDER_ENV: order.to_json(),
        ATTEMPT_ENV: f"local-{secrets.token_hex(4)}-{attempt}",
        TERMINATION_PATH_ENV: str(termination),
        WORK_DIRECTORY_ENV: str(work),
    }
    timed_out = False
    with folder.log(order.stage, attempt).open("wb") as log, progress.open("wb") as out, progress.open("rb") as lines:
        process = trainers.start(order, environment, stdout=out.fileno(), stderr=log.fileno())
        try:
            seen_stops = 0
            while (code := process.poll()) is None:
                _report_progress(lines.readlines(), on_progress)
                # Signals are handled here, not in the handler, because terminate() and printing are not safe there.
                seen_stops = _pass_on_stop(process, stops.count, seen_stops, note)
                over_s = time.monotonic() - deadline_at if deadline_at is not None else -1.0
                if over_s > 0 and not timed_out and not seen_stops:  # after a stop it is already saving
                    timed_out = True
                    process.terminate()
                if timed_out and over_s > GRACE_S:
                    process.kill()
                _wait(process)
            # Lines written between the last poll and the end of the process.
            _report_progress(lines.readlines(), on_progress)
        finally:
            if process.poll() is None:  # an exception was raised above
                _end(process, stops)
            shutil.rmtree(work, ignore_errors=True)  # a killed trainer leaves gigabytes there
    message = termination.read_text(encoding="utf-8", errors="replace") if termination.exists() else ""
    return AttemptResult(code, parse_answer(message), folder.log(order.stage, attempt), timed_out)


def _end(process: TrainerProcess, stops: StopSignals) -> None:
    """Lets the trainer save its state; kills it after GRACE_S, or when the user asks for it."""
    process.terminate()
    kill_at = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < kill_at and stops.count < KILL_AT_STOP:
        _wait(process)
    process.kill()  # does nothing to a process that has ended
    process.wait()


def _wait(process: TrainerProcess) -> None:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return


def _pass_on_stop(process: TrainerProcess, count: int, seen: int, note: Callable[[str], None]) -> int:
    """Passes the first stop on to the trainer, and tells the user what the next ones do. Returns: the stops handled."""
    if count == seen:
        return seen
    if seen == 0:
        process.terminate()
        note("stopping: the trainer saves its state")
    if seen < KILL_AT_STOP - 1 <= count < KILL_AT_STOP:
        note("still saving; press Ctrl-C again to kill the trainer and lose what is not saved")
    if count >= KILL_AT_STOP > seen:
        process.kill()
    return count


def _report_progress(lines: list[bytes], on_progress: Callable[[Progress], None]) -> None:
    for line in lines:
        progress = parse_progress(line.decode(errors="replace"))
        if progress is not None:
            on_progress(progress)
