"""Real launchers and real rank processes; in the ranks a few lines of a test replace the stage."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.ports import free_rendezvous
from distillchain_api.resource.parallelism import ResolvedParallelism
from distillchain_api.wire.answer import Committed, Failed, Interrupted, Progress
from distillchain_api.wire.manifest import ModelSummary, SplitMetrics
from distillchain_api.wire.work_order import NODE_ENV, RENDEZVOUS_ENV, WorkOrder
from trainer.parts import an_order, answer_in, environment

DEADLINE_S = 120.0  # two CPUs may be shared with other tests

RANK_PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from distillchain_trainer.signals import Signals
signals = Signals()
signals.install()
from distillchain_api.wire.answer import Committed
from distillchain_store import errors as store_errors
from distillchain_trainer import errors
from distillchain_trainer.launch.leaving import leave
from distillchain_trainer.launch.rank import main
from distillchain_trainer.stage import run
rank = int(os.environ["RANK"])
shared = Path({shared!r})
def mark(name):
    (shared / f"{{name}}-{{rank}}").touch()
def wait_for(name, *ranks):
    while not all((shared / f"{{name}}-{{other}}").exists() for other in ranks):
        time.sleep(0.01)
def wait_for_stop(signals):
    with signals.deferred():
        mark("stoppable")  # a signal before this raises at once
        while not signals.requested:
            time.sleep(0.01)
def stage(order, *, attempt, folder, reporter, signals, warnings, on_committed=None, fitting_rows=None):
    mark("started")
{body}
    return Committed.parse({committed!r})
real_stage = run.run_stage
run.run_stage = stage
leave(main(signals))
"""
LAUNCHER_PROGRAM = """
import sys
from distillchain_trainer.signals import Signals
signals = Signals()
signals.install()
from distillchain_trainer.launch import connection, host, launcher, member, process, ranks
ranks.RANK_COMMAND = (sys.executable, {rank_program!r})
{settings}
sys.exit(process.main([], signals))
"""


def a_commit(order: WorkOrder) -> Committed:
    student = ModelSummary(parameters=1, size_bytes=1, metrics=SplitMetrics(validation={"accuracy": 0.9}))
    return Committed(
        stage=order.stage,
        digest=order.digest,
        attempt="here",
        checkpoint="file:///here",
        reused=False,
        pretrained=False,
        student=student,
        elapsed_s=1.0,
        examples_per_second=1.0,
    )


def several(order: WorkOrder, *, nodes: int = 1, processes: int = 2) -> WorkOrder:
    parallelism = ResolvedParallelism(nodes=nodes, processes_per_node=processes)
    return order.model_copy(update={"parallelism": parallelism})


@dataclass
class Node:
    """A launcher that runs."""

    process: subprocess.Popen[str]
    folder: Path
    shared: Path
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def until_true(self, condition: Callable[[], bool], what: str) -> None:
        """Waits for a condition."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not reached: {what}\n{self.log}"
            assert self._reader.is_alive() or condition(), f"ended before: {what}\n{self.log}"
            time.sleep(0.02)

    def until(self, text: str) -> None:
        """Waits for a text in the log."""
        self.until_true(lambda: text in self.log, text)

    def until_marked(self, name: str, *ranks: int) -> None:
        """Waits until ranks have called `mark(name)`."""
        paths = [self.shared / f"{name}-{rank}" for rank in ranks]
        self.until_true(lambda: all(path.exists() for path in paths), f"{name} by ranks {ranks}")

    def until_gone(self, pid: int) -> None:
        """Waits for the end of a process that is no child of ours."""
        deadline = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """As when the machine fails: launcher and ranks are gone at once."""
        self.process.kill()

    def ends(self) -> tuple[int, Committed | Failed | Interrupted]:
        """Exit code and answer."""
        code = self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert (self.folder / "termination").exists(), self.log
        return code, answer_in(self.folder)

    @property
    def progress(self) -> list[Progress]:
        """What it has reported so far. There must be nothing else on stdout."""
        lines = (self.folder / "stdout").read_text().splitlines(keepends=True)
        return [Progress.parse(line) for line in lines if line.endswith("\n")]


@dataclass
class Nodes:
    """Starts launchers, and ends those that a failed test has left."""

    root: Path
    port: int = field(default_factory=free_rendezvous)
    started: list[Node] = field(default_factory=list)

    def start(
        self,
        body: str,
        *,
        order: WorkOrder | None = None,
        node: int = 0,
        settings: str = "",
        variables: dict[str, str] | None = None,
    ) -> Node:
        """A launcher whose ranks run `body` instead of the stage."""
        order = order or several(an_order(self.root))
        folder = self.root / f"node-{node}-{len(self.started)}"
        shared = self.root / "shared"
        folder.mkdir()
        shared.mkdir(exist_ok=True)
        program = folder / "rank.py"
        indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
        committed = a_commit(order).to_json()
        program.write_text(RANK_PROGRAM.format(body=indented, shared=str(shared), committed=committed))
        command = LAUNCHER_PROGRAM.format(rank_program=str(program), settings=settings)
        return self._launch(["-c", command], order, node, folder, variables)

    def start_stage(self, order: WorkOrder, *, node: int = 0) -> Node:
        """The trainer as its container starts it."""
        folder = self.root / f"node-{node}-{len(self.started)}"
        folder.mkdir()
        return self._launch(["-m", "distillchain_trainer"], order, node, folder)

    def _launch(
        self, arguments: list[str], order: WorkOrder, node: int, folder: Path, variables: dict[str, str] | None = None
    ) -> Node:
        several_nodes = {NODE_ENV: str(node), RENDEZVOUS_ENV: f"127.0.0.1:{self.port}"}
        of_pod = (several_nodes if order.parallelism.nodes > 1 else {}) | (variables or {})
        with (folder / "stdout").open("wb") as stdout:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment(order, folder, **of_pod),
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )
        self.started.append(Node(process, folder, self.root / "shared"))
        return self.started[-1]

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        try:
            yield
        finally:
            for node in self.started:
                node.process.kill()
                node.process.wait()
                node._reader.join(DEADLINE_S)
                if node.process.stderr is not None:
                    node.process.stderr.close()
