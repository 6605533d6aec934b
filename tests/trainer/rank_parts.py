"""Starts the ranks of a stage as processes of their own, as the launcher does, without the launcher."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.work_order import WorkOrder
from trainer.parts import environment

# What a rank runs: the stage, then its outcome on the last line of stdout. `before` is Python that a test adds.
SCRIPT = """
import sys, os
from pathlib import Path
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.signals import Signals
signals = Signals()
signals.install()
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage.run import run_stage
rank, order = int(os.environ["RANK"]), WorkOrder.parse(os.environ["ORDER"])
exec(os.environ.get("BEFORE", ""))
signals.obey()
try:
    answer = run_stage(order, attempt=os.environ["ATTEMPT"], folder=Path(os.environ["FOLDER"]),
                       reporter=Reporter(order.stage, None), signals=signals)
    print("committed", answer.to_json())
except BaseException as error:
    print(type(error).__name__, getattr(error, "step", ""), signals.saved_step, error, sep="|")
sys.stdout.flush()
os._exit(0)
"""


@dataclass
class Ranks:
    """The processes of one attempt, all on this node."""

    processes: list[subprocess.Popen[str]]
    outcomes: list[str] = field(default_factory=list)

    def wait(self, timeout_s: float = 120.0) -> list[str]:
        """The last line of each rank's stdout; empty for one that was killed."""
        deadline = time.monotonic() + timeout_s
        try:
            outs = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        self.outcomes = [(out.strip().splitlines() or [""])[-1] for out, _ in outs]
        self.logs = [err for _, err in outs]
        return self.outcomes

    def answers(self) -> list[Committed]:
        """The answers of ranks that all have committed."""
        for outcome, log in zip(self.wait(), self.logs, strict=True):
            assert outcome.startswith("committed "), f"{outcome}\n{log[-3000:]}"
        return [Committed.parse(outcome.removeprefix("committed ")) for outcome in self.outcomes]

    def signal(self, number: int = signal.SIGTERM) -> None:
        for process in self.processes:
            process.send_signal(number)


def start_ranks(
    order: WorkOrder, root: Path, size: int, *, attempt: str = "ranks", before: str = "", local_size: int = 0
) -> Ranks:
    """`local_size` processes share a folder, as on a node; 0: all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local_size = local_size or size
    processes = []
    for rank in range(size):
        folder = root / f"work-{attempt}-{rank // local_size}"
        folder.mkdir(exist_ok=True)
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % local_size),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(local_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ORDER": order.to_json(),
            "ATTEMPT": attempt,
            "FOLDER": str(folder),
            "BEFORE": before,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT],
                env=environment(order, root, **variables),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return Ranks(processes)


def wait_until(is_true: Callable[[], bool], ranks: Ranks, timeout_s: float = 60.0) -> None:
    """Waits for a condition while the ranks run."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        ended = [process for process in ranks.processes if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            for process in ranks.processes:
                process.kill()
            raise AssertionError([process.communicate() for process in ranks.processes])
        time.sleep(0.02)
