"""Runs functions and stages in several processes that know each other, as the launcher starts them, but quicker.

The processes are forked from one that has loaded torch and transformers already.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from distillchain_api.wire.answer import Committed
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from trainer.parts import StopAfter, weights_of

PRELOADED = ["transformers.models.bert.modeling_bert", "distillchain_trainer.stage.commit"]
WAIT_S = 90.0

Outcome = dict[str, Any]
"""What a rank wrote: `answer`, or `error`, `message` and `step`; `log` in any case. Empty for one that was killed."""


@dataclass
class Ranks:
    """Some processes that run the same function."""

    processes: list[ForkServerProcess]
    outcomes: list[Path]

    def wait(self) -> list[Outcome]:
        """Waits for all of them."""
        deadline = time.monotonic() + WAIT_S
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
        assert not late, f"{len(late)} of {len(self.processes)} ranks did not end"
        return [json.loads(path.read_text()) if path.exists() else {} for path in self.outcomes]

    def answers(self) -> list[Committed]:
        """Of ranks that have all committed."""
        outcomes = self.wait()
        assert all("answer" in outcome for outcome in outcomes), outcomes
        return [Committed.parse(outcome["answer"]) for outcome in outcomes]

    def signal(self, number: int, *ranks: int) -> None:
        """Sends a signal to some ranks."""
        for rank in ranks:
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, number)

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        """Waits for a condition while all ranks run."""
        deadline = time.monotonic() + WAIT_S
        while not is_true():
            if time.monotonic() > deadline or not all(process.is_alive() for process in self.processes):
                self.signal(signal.SIGKILL, *range(len(self.processes)))
                raise AssertionError([path.read_text() for path in self.outcomes if path.exists()])
            time.sleep(0.02)


def start_ranks(
    run: Callable[[Path, Any], Outcome], root: Path, size: int, argument: Any = None, *, nodes: int = 1, name: str
) -> Ranks:
    """Runs `run(folder, argument)` in `size` processes; `folder` is shared by those of a node."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, outcomes = [], []
    per_node = size // nodes
    for rank in range(size):
        folder = root / f"work-{name}-{rank // per_node}"
        folder.mkdir(exist_ok=True)
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % per_node),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(per_node),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        outcomes.append(root / f"outcome-{name}-{rank}.json")
        processes.append(context.Process(target=_rank, args=(variables, run, folder, argument, outcomes[-1])))
        processes[-1].start()
    return Ranks(processes, outcomes)


def _rank(
    variables: dict[str, str], run: Callable[[Path, Any], Outcome], folder: Path, argument: Any, outcome: Path
) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    lines: list[str] = []
    logging.getLogger("distillchain_trainer").addHandler(_Lines(lines))
    found = run(folder, argument)
    outcome.write_text(json.dumps({**found, "log": lines}))
    os._exit(0)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())


@dataclass(frozen=True)
class Attempt:
    """What the ranks of a stage do.

    Attributes:
        stop_after: rank that is asked to stop, and how many looks later.
        fault: is called on each rank before the stage.
    """

    order: WorkOrder
    name: str
    stop_after: tuple[int, int] | None = None
    fault: Callable[[int], None] | None = None


def start_stage(attempt: Attempt, root: Path, size: int, *, nodes: int = 1) -> Ranks:
    """Runs a stage in several processes."""
    return start_ranks(_run_stage, root, size, attempt, nodes=nodes, name=attempt.name)


def _run_stage(folder: Path, attempt: Attempt) -> Outcome:
    from distillchain_trainer.stage.run import run_stage

    rank = int(os.environ["RANK"])
    stops = attempt.stop_after is not None and attempt.stop_after[0] == rank
    signals = StopAfter(attempt.stop_after[1]) if stops and attempt.stop_after else Signals()
    signals.install()
    signals.obey()
    if attempt.fault:
        attempt.fault(rank)
    reporter = Reporter(attempt.order.stage, None)
    try:
        answer = run_stage(attempt.order, attempt=attempt.name, folder=folder, reporter=reporter, signals=signals)
    except BaseException as error:
        step = max(getattr(error, "step", 0), signals.saved_step)
        return {"error": type(error).__name__, "message": str(error), "step": step}
    return {"answer": answer.to_json()}


def short_memory(rank: int, *, most: int = 2) -> None:
    """Rank 1 alone has memory for so many rows of a micro-batch."""
    import torch

    from distillchain_trainer.engine.training.step import Work

    real = Work.losses

    def losses(self: Work, rows: torch.Tensor, **more: Any) -> torch.Tensor:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, rows, **more)

    if rank == 1:
        Work.losses = losses  # type: ignore[method-assign]  # as monkeypatch does, but in another process


def a_device_that_counts_weights(rank: int, *, seen: Path) -> None:
    """Writes the most elements of one model that were on the device of this rank, by what was done with the model.

    The device has another name than the memory of the host, so that both can be told apart on a machine without GPUs.
    """
    import torch
    from torch import nn
    from torch.distributed.tensor import DTensor

    from distillchain_trainer.engine.passes import shared_forward
    from distillchain_trainer.engine.training import loop, step
    from distillchain_trainer.stage import commit, compute, prepare, train_student

    device, most = torch.device("cpu", 0), {"moved": 0, "trained": 0, "measured": 0}
    for module in (loop, compute, train_student, commit, prepare):
        module.best_device = lambda: device

    def note(model: nn.Module, what: str) -> None:
        parts = (own.to_local() if isinstance(own, DTensor) else own for own in model.parameters())
        most[what] = max(most[what], sum(part.numel() for part in parts))
        (seen / f"seen-{rank}.json").write_text(json.dumps(most))

    to, losses, passes = nn.Module.to, step.Work.losses, shared_forward._in_step

    def noted_to(self: nn.Module, *where: Any, **more: Any) -> nn.Module:
        if device in where:
            note(self, "moved")
        return to(self, *where, **more)

    def noted_losses(self: step.Work, *rows: Any, **more: Any) -> torch.Tensor:
        note(self.model, "trained")
        return losses(self, *rows, **more)

    def noted_passes(world: Any, model: Any, *rest: Any) -> Any:
        note(model, "measured")
        yield from passes(world, model, *rest)
        note(model, "measured")

    nn.Module.to = noted_to  # type: ignore[method-assign,assignment]  # see above
    step.Work.losses = noted_losses  # type: ignore[method-assign]
    shared_forward._in_step = noted_passes


def no_memory_for_a_split_teacher(rank: int) -> None:
    """On rank 1 alone."""
    import torch

    from distillchain_trainer.engine.passes import shared_forward

    def outputs_of_batch(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if rank == 1:
        shared_forward.outputs_of_batch = outputs_of_batch


def a_compiler_that_rank_1_lacks(rank: int) -> None:
    """Of two modes, the second fails on rank 1, and rank 2 does not even try it."""
    from distillchain_trainer.engine.device import modes
    from distillchain_trainer.engine.training import stepper

    def compile_layers(_: Any) -> None:
        if rank == 1:
            raise RuntimeError("no compiler")

    known = (modes.Mode.EAGER, modes.Mode.COMPILED)
    stepper.available_modes = lambda *_, **more: known[:1] if rank == 2 else known
    stepper.compile_layers = compile_layers
    stepper.uncompile_layers = lambda _: None
    modes.COMPILE_PAYS_S = 0.0


def a_store_that_takes_no_state(_: int) -> None:
    """For as long as anybody waits."""
    from distillchain_store.errors import StorageUnavailable
    from distillchain_trainer.engine.training.saved_state import ResumeStates

    def save(*_: Any) -> None:
        raise StorageUnavailable("the store is away")

    ResumeStates.save = save  # type: ignore[method-assign]  # see above


def a_store_that_takes_logits_for_longer_than_a_collective_may_take(rank: int) -> None:
    """Rank 0 alone writes."""
    from datetime import timedelta

    from distillchain_trainer.engine.passes.teacher_outputs import TeacherPass
    from distillchain_trainer.engine.ranks import joining

    real = TeacherPass._write

    def write(self: TeacherPass, *parts: Any) -> None:
        real(self, *parts)
        if rank == 0:
            time.sleep(6)

    joining.COLLECTIVE_TIMEOUT = timedelta(seconds=4)
    TeacherPass._write = write  # type: ignore[method-assign]  # see above


def a_stop_of_rank_1_as_it_measures_an_epoch(rank: int) -> None:
    """Rank 0 gets no signal."""
    from distillchain_trainer.stage.measure import Measurer

    real = Measurer.split

    def split(self: Measurer, *parts: Any, interruptible: bool = False, **more: Any) -> Any:
        if interruptible:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *parts, interruptible=interruptible, **more)

    if rank == 1:
        Measurer.split = split  # type: ignore[method-assign]  # see above


def a_student_that_only_rank_1_cannot_load(rank: int) -> None:
    """As if its disk were damaged."""
    from distillchain_trainer.errors import CheckpointInvalid
    from distillchain_trainer.tasks.text_classification.adapter import TextClassificationAdapter

    def load(*_: Any, **more: Any) -> Any:
        raise CheckpointInvalid("spec.stages[0].student.model: damaged")

    if rank == 1:
        TextClassificationAdapter.build_student = load  # type: ignore[method-assign]  # see above


# AdamW divides a gradient by its own size, so where it is nearly zero, rounding is magnified: up to 1.2e-5, by kind of CPU. If
# the rows of one rank count 10 % more, the difference is 0.04 or more.
NOISE = 1e-4


def distance(one: Committed, other: Committed) -> float:
    """The largest difference of two weights."""
    from safetensors.torch import load

    ours, theirs = load(weights_of(one)), load(weights_of(other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
