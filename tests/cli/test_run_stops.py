"""`distillchain run` when it is stopped, killed, or loses its terminal or the reader of its output."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cli.parts import (
    COMMAND,
    WITH_DEFAULT_SIGNALS,
    attempts_of,
    clean_environment,
    install_stand_in,
    script_until_stopped,
    write_chain,
)
from cluster.waiting import wait_until
from distillchain_api.graph import build_plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_cli.arguments.chain_files import read_chain
from distillchain_cli.local.live import PlainView
from distillchain_cli.local.processes import RunFolder, StopSignals
from distillchain_cli.local.run import run_chain

pytestmark = pytest.mark.slow

DEADLINE_S = 30
SAVED = "interrupted; its state at step 7 is saved"
SAVES_WHEN_STOPPED = script_until_stopped(f"""
time.sleep(0.5)
(here / "signals").write_text(json.dumps(signals))
answer("Interrupted", step=7, message="{SAVED}")
sys.exit(75)
""")
COMMITS_ON_GO = """
(here / "ready").touch()
while not (here / "go").exists(): time.sleep(0.02)
progress("Train", 120, 600)
commit()
"""


class TestRun:
    """A run of chain.yaml in the background, whose trainer is a script. The run has a process group of its own, so that
    a signal to the group reaches what Ctrl-C in a shell would reach."""

    __test__ = False

    def __init__(self, folder: Path, act: str, *, by: Sequence[str] = WITH_DEFAULT_SIGNALS) -> None:
        stand_in = install_stand_in(folder, act)
        self.here = folder / "stand-in" / "distillchain_trainer"
        self.process = subprocess.Popen(
            [*by, *COMMAND, "run", "chain.yaml"],
            cwd=folder,
            env=clean_environment(folder) | stand_in,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_until("the trainer", lambda: (self.here / "ready").exists(), deadline_s=DEADLINE_S)

    def press_ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def close_output(self) -> None:
        """As when the process that reads it exits."""
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()

    def stderr_at_end(self) -> list[str]:
        return self.process.communicate(timeout=DEADLINE_S)[1].splitlines()

    @property
    def signals(self) -> list[int]:
        """The signals that the trainer received."""
        received: list[int] = json.loads((self.here / "signals").read_text())
        return received

    @property
    def trainer_pid(self) -> int:
        return int((self.here / "attempt-1").read_text())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ctrl_c_reaches_the_trainer_once_and_the_run_says_how_to_continue(tmp_path: Path):
    write_chain(tmp_path)
    run = TestRun(tmp_path, SAVES_WHEN_STOPPED)

    run.press_ctrl_c()
    messages = run.stderr_at_end()

    assert run.process.returncode == 1
    assert run.signals == [signal.SIGTERM]
    assert messages[-4:-1] == [
        "stage mini: stopped",
        f"stopped: {SAVED}",
        "to continue, run the same command again",
    ]


def test_ctrl_c_after_the_commit_says_what_the_next_attempt_makes(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"], template={"export": {"onnx": {}}})
    run = TestRun(tmp_path, "commit()\n" + script_until_stopped("sys.exit(75)"))

    run.press_ctrl_c()
    messages = run.stderr_at_end()

    assert "stopped: stopped after it was committed; the next attempt makes its export or report" in messages


def test_a_stop_of_a_control_says_how_to_continue_and_leaves_the_chain_succeeded(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"], evidence={"controls": ["Direct"], "seeds": 2})
    commits = 'if "direct" not in order["stage"]:\n    commit()\n    sys.exit(0)\n'
    run = TestRun(tmp_path, commits + SAVES_WHEN_STOPPED)

    run.press_ctrl_c()
    messages = run.stderr_at_end()

    assert run.process.returncode == 1
    assert "stage mini-direct-s1: stopped" in messages
    assert messages[-3:] == [
        "succeeded: file:///x",
        f"evidence: mini-direct-s1: {SAVED}",
        "to continue, run the same command again",
    ]


def test_a_stop_is_not_reported_as_a_timeout_if_saving_takes_longer_than_the_timeout(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"], template={"timeout": "8s"})
    save = f"time.sleep(9)\n(here / 'signals').write_text(json.dumps(signals))\nanswer('Interrupted', step=7, message='{SAVED}')"
    run = TestRun(tmp_path, script_until_stopped(f"{save}\nsys.exit(75)"))

    run.press_ctrl_c()
    messages = run.stderr_at_end()

    assert run.signals == [signal.SIGTERM]
    assert f"stopped: {SAVED}" in messages


def test_the_third_ctrl_c_kills_a_trainer_that_does_not_stop(tmp_path: Path):
    write_chain(tmp_path)
    run = TestRun(tmp_path, 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / "ready").touch()\ntime.sleep(600)')

    for text in ("saves its state", "press Ctrl-C again", "stopped"):
        run.press_ctrl_c()
        assert run.process.stderr
        for line in run.process.stderr:
            if text in line:
                break
    run.process.communicate(timeout=DEADLINE_S)

    assert run.process.returncode == 1
    assert not is_running(run.trainer_pid)


def test_a_trainer_that_ignores_its_timeout_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distillchain_cli.local.processes.GRACE_S", 0.5)
    plan = build_plan(read_chain(str(write_chain(tmp_path, stages=["mini"], template={"timeout": "1s"}))))
    act = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])

    status = run_chain(plan, RunFolder(tmp_path), view=PlainView(io.StringIO(), metric="accuracy"))

    assert status.stages[0].failure_class == "DeadlineExceeded"
    (pid,) = (int(path.read_text()) for path in (tmp_path / "stand-in").rglob("attempt-1"))
    assert not is_running(pid)


def test_the_trainer_saves_and_exits_when_the_run_is_killed(tmp_path: Path):
    write_chain(tmp_path)
    run = TestRun(tmp_path, SAVES_WHEN_STOPPED)
    pid = run.trainer_pid

    run.process.kill()
    run.process.communicate()

    wait_until("the trainer to end", lambda: not is_running(pid), deadline_s=DEADLINE_S)
    assert run.signals == [signal.SIGTERM]


def test_the_trainer_saves_when_the_terminal_is_closed(tmp_path: Path):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, SAVES_WHEN_STOPPED)
    here = tmp_path / "stand-in" / "distillchain_trainer"
    our_end, terminal = os.openpty()
    with (tmp_path / "status.json").open("w") as out:
        process = subprocess.Popen(
            [*WITH_DEFAULT_SIGNALS, "setsid", "--ctty", *COMMAND, "run", "chain.yaml", "-o", "json"],
            cwd=tmp_path,
            env=clean_environment(tmp_path) | stand_in,
            stdin=terminal,
            stdout=out,
            stderr=terminal,
        )
    os.close(terminal)
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    os.close(our_end)

    assert process.wait(DEADLINE_S) == 1
    assert json.loads((here / "signals").read_text()) == [signal.SIGTERM]
    assert ChainStatus.parse((tmp_path / "status.json").read_text()).message == f"mini: {SAVED}"


def test_the_trainer_saves_when_ctrl_c_also_ends_the_reader_of_the_output(tmp_path: Path):
    write_chain(tmp_path)
    run = TestRun(tmp_path, SAVES_WHEN_STOPPED)

    run.close_output()  # as in `2>&1 | tee log`
    run.press_ctrl_c()

    assert run.process.wait(DEADLINE_S) == 1
    assert run.signals == [signal.SIGTERM]


def test_a_run_continues_when_the_reader_of_its_output_exits(tmp_path: Path):
    write_chain(tmp_path)
    run = TestRun(tmp_path, COMMITS_ON_GO)

    run.close_output()  # as in `2>&1 | head -1`
    (run.here / "go").touch()

    assert run.process.wait(DEADLINE_S) == 0
    assert attempts_of(tmp_path) == 2


def test_under_nohup_a_run_continues_when_its_terminal_is_closed(tmp_path: Path):
    write_chain(tmp_path)
    run = TestRun(tmp_path, COMMITS_ON_GO, by=["nohup"])

    run.process.send_signal(signal.SIGHUP)
    (run.here / "go").touch()
    messages = run.stderr_at_end()

    assert run.process.returncode == 0, messages
    assert attempts_of(tmp_path) == 2


@pytest.fixture
def default_hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_hangup")
def test_several_sighups_of_one_closed_terminal_count_as_one_stop():
    stops = StopSignals()

    with stops.caught():
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)

    assert stops.count == 1


@pytest.mark.parametrize("stream, succeeds", [("stderr", True), ("stdout", False)])
def test_a_full_disk_drops_messages_but_fails_a_result(tmp_path: Path, stream: str, succeeds: bool):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, "commit()")

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "run", "chain.yaml"],
            cwd=tmp_path,
            env=clean_environment(tmp_path) | stand_in,
            check=False,
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full},
        )

    assert (done.returncode == 0) is succeeds
    assert attempts_of(tmp_path) == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_run_works_with_a_stream_closed(tmp_path: Path, closed: str):
    write_chain(tmp_path)
    command = shlex.join([*COMMAND, "run", "chain.yaml"])

    done = subprocess.run(
        ["bash", "-c", f"{command} {closed}"],
        cwd=tmp_path,
        env=clean_environment(tmp_path) | install_stand_in(tmp_path, "commit()"),
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert attempts_of(tmp_path) == 2


class BrokenView(PlainView):
    """A view with a bug."""

    def progress(self, line: Progress) -> None:
        raise ZeroDivisionError


def test_a_bug_in_the_command_lets_the_trainer_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = build_plan(read_chain(str(write_chain(tmp_path))))
    act = SAVES_WHEN_STOPPED.replace("while not signals", "progress('Train', 1, 2)\nwhile not signals")
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])

    with pytest.raises(ZeroDivisionError):
        run_chain(plan, RunFolder(tmp_path), view=BrokenView(io.StringIO(), metric="accuracy"))

    here = tmp_path / "stand-in" / "distillchain_trainer"
    assert json.loads((here / "signals").read_text()) == [signal.SIGTERM]
