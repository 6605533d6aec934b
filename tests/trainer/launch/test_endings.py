"""Every ending has an answer: also crashes, full memory, and what a library throws."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillchain_api.wire.answer import Failed, Interrupted
from distillchain_trainer.errors import LostPeers, is_peer_failure, translate_unforeseen
from distillchain_trainer.launch import threads
from distillchain_trainer.launch.threads import cpu_share, idle_cpus
from trainer.launching import a_commit
from trainer.parts import an_order, answer_in, environment

CRASH = """
import os, signal, sys, time
from distillchain_trainer.signals import Signals
signals = Signals()
signals.install()
{early}
from distillchain_store import errors
from distillchain_trainer.launch import process
from distillchain_trainer.stage import run
def crash(*_, on_committed, **__):
    {statement}
run.run_stage = crash
sys.exit(process.main([], signals))
"""


def crash(folder: Path, statement: str, *, early: str = "") -> subprocess.CompletedProcess[str]:
    """The crash replaces the stage: real parts do not crash on demand."""
    return subprocess.run(
        [sys.executable, "-c", CRASH.format(statement=statement, early=early)],
        env=environment(
            an_order(folder),
            folder,
            AWS_SECRET_ACCESS_KEY="top-secret-value",
            HUGGING_FACE_HUB_TOKEN="hub-token-value",
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.models
@pytest.mark.parametrize(
    "statement, code, want",
    [
        pytest.param(
            "raise KeyError('surprise, top-secret-value')", 70, "KeyError: 'surprise, <AWS_SECRET_ACCESS_KEY>'", id="crash"
        ),
        pytest.param("raise RuntimeError('Connection reset by peer')", 70, "RuntimeError: Connection reset by peer", id="the words of a lost peer, in one process"),
        pytest.param("raise errors.StorageDenied('refused top-secret-value')", 69, "refused <AWS_SECRET_ACCESS_KEY>", id="a secret in a sentence"),
        pytest.param("raise errors.StorageDenied('http://bob:top@s3.test refused hub-token-value')", 69, "http://s3.test refused <HUGGING_FACE_HUB_TOKEN>", id="a password in an address"),
        pytest.param("[0] * 10**18", 71, "the container ran out of memory; lower microBatchSize (the digest stays the same), or raise resources.limits", id="memory"),
        pytest.param("open('/dev/full', 'w').write('x' * 10**6)", 73, "no space left on the disk at {folder}/work or in the hub client's cache; free space there, or choose another disk (TMPDIR for temporary files, HF_HOME for models of the hub)", id="disk"),
        pytest.param("print('not progress'); import os; os.system('echo nor this'); sys.exit(3)", 70, "SystemExit: 3", id="a library that exits"),
    ],
)  # fmt: skip
def test_every_ending_has_an_answer(tmp_path: Path, statement: str, code: int, want: str):
    (tmp_path / "termination").write_text("x" * 5000)

    process = crash(tmp_path, statement)

    assert process.returncode == code, process.stderr
    answer = answer_in(tmp_path)
    assert isinstance(answer, Failed)
    assert answer.message == want.replace("{folder}", str(tmp_path))
    assert answer.digest == an_order(tmp_path).digest
    for secret in ("top-secret-value", "bob:top", "hub-token-value"):
        assert secret not in process.stderr
    assert process.stdout == "", "stdout is for progress alone"
    assert list((tmp_path / "work").iterdir()) == []


SIGTERM = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)"


@pytest.mark.models
@pytest.mark.parametrize(
    "early, statement, step, where",
    [
        pytest.param("os.kill(os.getpid(), signal.SIGTERM)", "sys.exit(3)", 0, "this attempt had not started to train, and the next one starts from what is in the store", id="while it is imported"),
        pytest.param("", SIGTERM, 0, "this attempt had not started to train, and the next one starts from what is in the store", id="before training"),
        pytest.param("", f"signals.saved_step = 40; {SIGTERM}", 40, "its state at step 40 is saved, and the next attempt continues from it", id="after a state was saved"),
    ],
)  # fmt: skip
def test_sigterm_at_any_moment_ends_with_75(tmp_path: Path, early: str, statement: str, step: int, where: str):
    process = crash(tmp_path, statement, early=early)

    assert process.returncode == 75, process.stderr
    answer = answer_in(tmp_path)
    assert isinstance(answer, Interrupted)
    assert answer.step == step
    assert answer.message == f"interrupted; {where}"


@pytest.mark.models
@pytest.mark.parametrize(
    "then, code", [(f"signals.saved_step = 40; {SIGTERM}", 75), ("sys.exit(3)", 70)], ids=["stopped", "crashed"]
)
def test_a_stage_that_is_committed_stays_so_when_its_export_ends_early(tmp_path: Path, then: str, code: int):
    committed = a_commit(an_order(tmp_path))
    parsed = f"answer.parse_answer({committed.to_json()!r})"

    process = crash(tmp_path, f"on_committed({parsed}); {then}", early="from distillchain_api.wire import answer")

    assert (process.returncode, answer_in(tmp_path)) == (code, committed), process.stderr


@pytest.mark.models
def test_the_commit_of_an_earlier_trainer_is_no_answer(tmp_path: Path):
    (tmp_path / "termination").write_text(a_commit(an_order(tmp_path)).to_json())

    process = crash(tmp_path, "sys.exit(3)")

    assert isinstance(answer_in(tmp_path), Failed), process.stderr


def test_the_cause_of_a_cause_is_found():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        found = translate_unforeseen(error)

    assert found is not None
    assert found.exit_code == 73
    assert str(found).startswith("no space left on the disk at /tmp/x; ")


@pytest.mark.parametrize(
    "limit, want", [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("nonsense", None)]
)
def test_threads_follow_the_container_limit(tmp_path: Path, limit: str, want: int | None):
    (tmp_path / "cpu.max").write_text(limit + "\n")

    assert cpu_share(tmp_path / "cpu.max") == (want or len(os.sched_getaffinity(0)))


def test_threads_are_counted_where_the_system_knows_no_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """macOS."""
    monkeypatch.delattr(os, "sched_getaffinity")

    assert cpu_share(tmp_path / "none") == os.cpu_count()


def test_idle_cpus_are_counted():
    assert 0 <= idle_cpus(sample_s=0.05) <= (os.cpu_count() or 1) * 1.5


@pytest.mark.models
def test_the_version_is_said():
    done = subprocess.run([sys.executable, "-m", "distillchain_trainer", "--version"], capture_output=True, text=True)

    assert done.returncode == 0
    assert done.stdout == "distillchain-trainer 0.1.0\n"


@pytest.mark.parametrize(
    "error, want",
    [
        pytest.param(LostPeers("rank 1 ended"), True, id="reported by the others"),
        pytest.param(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:23"), True, id="gloo, within FSDP"),
        pytest.param(type("DistBackendError", (type("DistError", (RuntimeError,), {}),), {})("NCCL error"), True, id="NCCL, within FSDP"),
        pytest.param(ConnectionResetError("Connection reset by peer"), False, id="another network"),
        pytest.param(RuntimeError("CUDA out of memory. Broken pipe"), False, id="memory"),
        pytest.param(type("DistBackendError", (type("DistError", (RuntimeError,), {}),), {})("NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'"), False, id="memory for NCCL"),
        pytest.param(RuntimeError("shape mismatch"), False, id="a fault of this rank"),
    ],
)  # fmt: skip
def test_a_failed_collective_is_distinguished_from_a_fault_of_this_rank(error: BaseException, want: bool):
    assert is_peer_failure(error) == want


@pytest.mark.parametrize("processes, want", [(1, 8), (3, 2), (8, 1), (16, 1)])
def test_ranks_share_the_cpus(monkeypatch: pytest.MonkeyPatch, processes: int, want: int):
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "PASSIVE"})
    monkeypatch.setattr(threads, "cpu_share", lambda: 8)

    threads.choose(processes)

    assert os.environ["OMP_NUM_THREADS"] == str(want)
