"""Trainers that are forked from a process with their libraries, as `distillchain run` starts them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillchain_api.wire.answer import Committed, Interrupted
from distillchain_api.wire.work_order import WorkOrder
from distillchain_cli.local import fork_client
from distillchain_cli.local.fork_client import ForkClient, ForkedTrainer
from distillchain_trainer.launch.fork_server import uses_cuda
from trainer.parts import an_order, answer_in, environment, start_process, weights_of, write_data

pytestmark = pytest.mark.models

DEADLINE_S = 120


@pytest.fixture
def client() -> Iterator[ForkClient]:
    client = ForkClient()
    yield client
    client.close()


def start(client: ForkClient, order: WorkOrder, root: Path) -> ForkedTrainer:
    with (root / "out").open("wb") as out, (root / "log").open("wb") as log:
        return client.start(environment(order, root), stdout=out.fileno(), stderr=log.fileno())


def committed(trainer: ForkedTrainer, root: Path) -> Committed:
    assert trainer.wait(DEADLINE_S) == 0, (root / "log").read_text()
    answer = answer_in(root)
    assert isinstance(answer, Committed)
    return answer


def test_forked_trainers_give_the_weights_of_a_trainer_that_was_started_by_itself(client: ForkClient, root: Path):
    order = an_order(root)
    alone = start_process(order, root)
    _, log = alone.communicate(timeout=DEADLINE_S)
    assert alone.returncode == 0, log
    want = weights_of(Committed.model_validate(answer_in(root)))

    for first in (True, False):
        shutil.rmtree(root / "store")
        answer = committed(start(client, order, root), root)

        assert weights_of(answer) == want
        # The first one is forked twice: it learns that the stage is not committed, and that it needs the libraries.
        assert (root / "log").read_text().count("stage begins") == (2 if first else 1)
        assert '"phase":"Train"' in (root / "out").read_text()
    adopted = committed(start(client, order, root), root)
    assert adopted.reused


def test_a_stop_at_the_start_is_answered(client: ForkClient, root: Path):
    trainer = start(client, an_order(root), root)

    trainer.terminate()

    assert trainer.wait(DEADLINE_S) == 75, (root / "log").read_text()
    assert isinstance(answer_in(root), Interrupted)


def test_a_killed_trainer_is_reported_with_its_signal(client: ForkClient, root: Path):
    trainer = start(client, an_order(root), root)
    assert trainer.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        trainer.wait(0.01)

    trainer.kill()

    assert trainer.wait(DEADLINE_S) == -signal.SIGKILL


def test_a_trainer_saves_and_ends_when_its_server_is_killed(client: ForkClient, root: Path):
    write_data(root / "data", train=6000)
    order = an_order(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1h"})
    trainer = start(client, order, root)
    while '"phase":"Train"' not in (root / "out").read_text():
        with pytest.raises(subprocess.TimeoutExpired):
            trainer.wait(0.1)

    os.kill(client.server_pid, signal.SIGKILL)

    assert trainer.wait(DEADLINE_S) == -signal.SIGKILL, "nobody is left who could know its exit code"
    stopped = answer_in(root)
    assert isinstance(stopped, Interrupted)
    assert stopped.step > 0
    assert not client.is_running
    with pytest.raises(ConnectionError):
        start(client, order, root)


def test_with_the_driver_of_cuda_loaded_trainers_are_started_and_not_forked(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    # A forked process cannot use CUDA if its parent has.
    server = "import sys; from distillchain_trainer.launch import fork_server as f; f.uses_cuda = lambda: True; f.main(sys.argv[1:])"  # fmt: skip
    monkeypatch.setattr(fork_client, "SERVER", (sys.executable, "-c", server))
    client = ForkClient()
    try:
        trainer = start(client, an_order(root), root)
        committed(trainer, root)
    finally:
        client.close()

    assert "Traceback" not in (root / "log").read_text()


@pytest.mark.parametrize("mapped, expected", [("libcuda.so.570.86", True), ("libcudart.so.13", False)])
def test_the_driver_of_cuda_is_found_among_the_mapped_files(tmp_path: Path, mapped: str, expected: bool):
    maps = tmp_path / "maps"
    maps.write_text(f"7f1-7f2 r-xp 0 00:00 1 /usr/lib/libc.so.6\n7f3-7f4 r-xp 0 00:00 2 /usr/lib/{mapped}\n")

    assert uses_cuda(maps) is expected
