"""The rank processes of this node: starts them, passes signals on, and finds out how each one ended.

Two threads per rank wait for its end and copy its stderr, so that neither blocks the launcher's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from distillchain_api.failures import EXIT_CODE, EXIT_INTERRUPTED, FailureClass
from distillchain_api.faults import BadDocument
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.launch.ending import CRASH_EXIT_CODE, Ending, failure, interrupted
from distillchain_trainer.launch.handover import RANK_ENV, RankEnd, RankStart
from distillchain_trainer.launch.place import Place, rank_variables

RANK_COMMAND = (sys.executable, "-P", "-m", "distillchain_trainer.launch")
MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
TAIL_BYTES = 16_384  # of a rank's stderr; a C++ stack trace takes a few thousand
STDERR_S = 1.0  # after the end of a rank: a child of it may keep the pipe open for ever
# If two classes share an exit code, the first of the table, as in the operator's policy.
CLASS_BY_EXIT_CODE = {code: failure_class for failure_class, code in reversed(EXIT_CODE.items())}
# What C++ code prints before it ends the process: NCCL's watchdog names the collective.
LAST_WORDS = re.compile(r"(Watchdog caught collective[^\n]*|(?<=what\(\):)[^\n]*|terminate called[^\n]*)")


class Ranks:
    """The ranks of one node.

    Args:
        progress: descriptor for the progress lines of rank 0.
        on_end: called in the event loop with a rank and its ending.
    """

    def __init__(
        self,
        order: WorkOrder,
        place: Place,
        start: RankStart,
        *,
        progress: int,
        on_end: Callable[[int, Ending], None],
    ) -> None:
        self._order = order
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._oom_kills = _oom_kills()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._killed: set[int] = set()
        for variables in rank_variables(place):
            self._start(variables, start, progress)

    def _start(self, variables: dict[str, str], start: RankStart, progress: int) -> None:
        rank = int(variables["RANK"])
        mine = start.model_copy(update={"end": f"{start.end}-{rank}"})
        with _held_back(signal.SIGUSR1):  # it would end a rank that has no handler for it yet
            process = subprocess.Popen(
                RANK_COMMAND,
                env={**os.environ, **variables, RANK_ENV: mine.to_json()},
                stdin=subprocess.DEVNULL,
                # The progress of the other ranks would repeat that of rank 0.
                stdout=progress if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Ctrl-C in a terminal reaches the launcher alone, which passes it on.
                process_group=0,
            )
        self._running[rank] = process
        threading.Thread(target=self._wait, args=(rank, process, Path(mine.end)), daemon=True).start()

    def _wait(self, rank: int, process: subprocess.Popen[bytes], end: Path) -> None:
        """In a thread of its own."""
        tail = bytearray()
        copying = threading.Thread(target=_copy_stderr, args=(process, tail), daemon=True)
        copying.start()
        code = process.wait()
        copying.join(STDERR_S)
        ending = self._ending(rank, code, end, bytes(tail).decode(errors="replace"))
        with contextlib.suppress(RuntimeError):  # the loop is closed: the launcher itself failed
            self._loop.call_soon_threadsafe(self._ended, rank, ending)

    def _ended(self, rank: int, ending: Ending) -> None:
        del self._running[rank]
        self._on_end(rank, ending)

    def _ending(self, rank: int, code: int, end: Path, stderr: str) -> Ending:
        with contextlib.suppress(OSError, BadDocument):
            return RankEnd.parse(end.read_text(encoding="utf-8")).ending
        # Killed by the launcher, or stopped before it handled signals.
        if rank in self._killed or code in (-signal.SIGTERM, -signal.SIGINT):
            return interrupted(self._order, 0)
        if code == EXIT_INTERRUPTED:  # the disk was too full for its answer
            return interrupted(self._order, 0)
        words = [match.strip() for match in LAST_WORDS.findall(stderr)]
        last_words = f": {words[-1]}" if words else ""
        if code >= 0:
            failure_class = CLASS_BY_EXIT_CODE.get(code, FailureClass.CRASHED)
            sentence = f"exited with code {code} and without an answer{last_words}"
            return failure(self._order, failure_class, sentence, EXIT_CODE[failure_class])
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            sentence = "the container ran out of memory, and the kernel killed this rank; raise resources.limits.memory"
            code = EXIT_CODE[FailureClass.OUT_OF_MEMORY]
            return failure(self._order, FailureClass.OUT_OF_MEMORY, sentence, code)
        hint = " (the kernel does this when memory runs out)" if code == -signal.SIGKILL else ""
        sentence = f"killed by {_name(-code)}{hint}{last_words}"
        return failure(self._order, FailureClass.CRASHED, sentence, CRASH_EXIT_CODE)

    @property
    def running(self) -> list[int]:
        """Ranks that have not ended."""
        return sorted(self._running)

    def signal(self, number: int) -> None:
        """Sends a signal to every rank."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def trace(self) -> None:
        """Asks the first rank of this node for a profiler trace: all ranks do the same."""
        for rank in self.running[:1]:
            self._running[rank].send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Ends every rank and its children; their endings count as interrupted."""
        self._killed.update(self._running)
        for process in self._running.values():
            # Each rank leads a process group of its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """Within, the signal waits; a child that is started inherits this, until it says otherwise."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _copy_stderr(process: subprocess.Popen[bytes], tail: bytearray) -> None:
    """Copies whole lines, so that those of several ranks do not mix; keeps the last TAIL_BYTES."""
    assert process.stderr is not None
    for line in process.stderr:
        tail += line
        del tail[:-TAIL_BYTES]
        with contextlib.suppress(OSError):  # our stderr is gone; the rank must not block because of that
            os.write(2, line)


def _oom_kills() -> int:
    """How many processes of this container the kernel has killed for memory (cgroup v2)."""
    try:
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        return 0
