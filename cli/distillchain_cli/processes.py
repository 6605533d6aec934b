"""One attempt of one stage: the trainer as a subprocess, watched to its end. Knows no chain and no retries."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
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

POLL_S = 0.1
TRAINER = (sys.executable, "-m", "distillchain_cli.child")
KILLED_AT_PRESS = 3
GRACE_S = 120.0  # from SIGTERM to SIGKILL when the time is up, as a Job's pods have


class StopSignals:
    """How often this process was told to stop (Ctrl-C, SIGTERM, a closed terminal)."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within, the signals are counted and nothing is interrupted; one that was ignored still is, as under nohup."""
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heeded = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self.count:
            return  # the shell and the kernel each tell of one closed terminal; nobody pressed a key again
        self.count += 1


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    Attributes:
        exit_code: negative: the signal that killed it.
        answer: the trainer's own words; None when it had none.
        overdue: it was stopped because its time was up.
        log: what it said on stderr.
    """

    exit_code: int
    answer: Committed | Failed | Interrupted | None
    log: Path
    overdue: bool = False


@dataclass(frozen=True)
class Place:
    """Where the attempts of a run leave their logs and files in the making."""

    folder: Path

    def log(self, stage: str, attempt: int) -> Path:
        """What the trainer of an attempt says on stderr."""
        return self.folder / f"{stage}-{attempt}.log"


def run_attempt(
    order: WorkOrder,
    attempt: int,
    place: Place,
    *,
    stops: StopSignals,
    deadline_at: float | None,
    on_progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> End:
    """Starts the trainer on a work order and waits for its end.

    A stop is handed on once, as SIGTERM: the trainer has a session of its own, so that the terminal's Ctrl-C does not
    reach it as well. Progress goes through a file and not a pipe: a trainer that outlives us can still write and save.

    Args:
        deadline_at: time.monotonic() when it is stopped, and GRACE_S later killed; None: never.
    """
    termination, progress = place.folder / f"{order.stage}-{attempt}.answer", place.folder / f"{order.stage}.progress"
    work = place.folder / "work"
    termination.unlink(missing_ok=True)
    environment = {
        **os.environ,
        WORK_ORDER_ENV: order.to_json(),
        ATTEMPT_ENV: f"local-{secrets.token_hex(4)}-{attempt}",
        TERMINATION_PATH_ENV: str(termination),
        WORK_DIRECTORY_ENV: str(work),
    }
    overdue = False
    with place.log(order.stage, attempt).open("wb") as log, progress.open("wb") as out, progress.open("rb") as lines:
        process = subprocess.Popen(
            [*TRAINER, str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        try:
            told = 0
            while (code := process.poll()) is None:
                _report(lines.readlines(), on_progress)
                told = _hand_on_stop(process, stops.count, told, say)
                over_s = time.monotonic() - deadline_at if deadline_at is not None else -1.0
                if over_s > 0 and not overdue and not told:  # who was told to stop is saving already
                    overdue = True
                    process.terminate()
                if overdue and over_s > GRACE_S:
                    process.kill()
                _wait(process)
            _report(lines.readlines(), on_progress)
        finally:
            if process.poll() is None:  # only when something above broke
                _end(process, stops)
            shutil.rmtree(work, ignore_errors=True)
    words = termination.read_text(encoding="utf-8", errors="replace") if termination.exists() else ""
    return End(code, parse_answer(words), place.log(order.stage, attempt), overdue)


def _end(process: subprocess.Popen[bytes], stops: StopSignals) -> None:
    """Lets the trainer save its state; kills it where it has not ended GRACE_S later, or when a person wants that."""
    process.terminate()
    kill_at = time.monotonic() + GRACE_S
    while process.poll() is None and time.monotonic() < kill_at and stops.count < KILLED_AT_PRESS:
        _wait(process)
    process.kill()  # no signal to one that has ended
    process.wait()


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return


def _hand_on_stop(process: subprocess.Popen[bytes], count: int, told: int, say: Callable[[str], None]) -> int:
    """Tells the trainer of the first stop, and a person what the next ones do. Returns: the count it knows of."""
    if count == told:
        return told
    if told == 0:
        process.terminate()
        say("stopping: the trainer saves its state")
    if told < KILLED_AT_PRESS - 1 <= count < KILLED_AT_PRESS:
        say("still saving; once more, and the trainer is killed and loses what is not saved")
    if count >= KILLED_AT_PRESS > told:
        process.kill()
    return count


def _report(lines: list[bytes], on_progress: Callable[[Progress], None]) -> None:
    for line in lines:
        progress = parse_progress(line.decode(errors="replace"))
        if progress is not None:
            on_progress(progress)
