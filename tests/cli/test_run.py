"""`distillchain run` without models: how a run ends, and what is retried.

A script replaces the trainer for endings that the real one cannot be made to show; test_run_models.py runs the real one.
"""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.committed import write_store
from cli.parts import (
    COMMAND,
    attempts_of,
    clean_environment,
    distillchain,
    distillchain_here,
    install_stand_in,
    plant_manifest,
    script_until_stopped,
    write_chain,
)
from distillchain_api.failures import FATAL_EXIT_CODES
from distillchain_api.graph import build_plan
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.arguments.chain_files import read_chain
from distillchain_cli.local.live import PlainView
from distillchain_cli.local.processes import RunFolder
from distillchain_cli.local.run import run_chain

pytestmark = pytest.mark.slow

FAILS = "answer('Failed', failureClass='DataInvalid', message='what to do')\n"
ONNX: dict[str, Any] = {"onnx": {}}
SAVED = "interrupted; its state at step 7 is saved"


def log_folder(stderr: str) -> Path:
    found = re.search(r"logs of the trainers: (.+)", stderr)
    assert found, stderr
    return Path(found[1])


def a_view() -> PlainView:
    return PlainView(io.StringIO(), metric="accuracy")


def test_stages_run_in_order_and_the_status_is_that_of_a_cluster(tmp_path: Path):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, "commit()")

    done = distillchain("run", "chain.yaml", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    status = ChainStatus.parse(done.stdout)
    assert status.phase == "Succeeded"
    assert [entry.phase for entry in status.stages] == ["Committed", "Committed"]
    assert {c.type: c.status for c in status.conditions}["Succeeded"] == "True"
    messages = [line for line in done.stderr.splitlines() if line.startswith("stage")]
    assert [line.split(":")[0] for line in messages] == ["stage mini", "stage mini", "stage tiny", "stage tiny"]


def test_progress_is_printed_without_a_terminal(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"])
    stand_in = install_stand_in(tmp_path, "progress('Train', 120, 600)\ncommit()")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **stand_in)

    assert "stage mini: train 120/600\n" in done.stderr


def test_a_warning_of_the_trainer_is_printed_once_when_the_stage_ends_and_counted_below_the_table(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"])
    stand_in = install_stand_in(tmp_path, "commit(warnings=['class high is never predicted'])")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    assert "mini: warning: class high is never predicted" in done.stderr.splitlines()
    assert "mini: 1 warning, printed on stderr" in done.stdout.splitlines()
    assert (done.stderr + done.stdout).count("class high is never predicted") == 1


def test_on_a_terminal_each_warning_is_printed_once(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"])
    stand_in = install_stand_in(tmp_path, "commit(warnings=['class high is never predicted'])")
    our_end, terminal = os.openpty()

    process = subprocess.Popen(
        [*COMMAND, "run", "chain.yaml"],
        cwd=tmp_path,
        env=clean_environment(tmp_path) | {"COLUMNS": "80"} | stand_in,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    with os.fdopen(our_end, "rb", buffering=0) as screen:
        text = b"".join(iter(lambda: read_terminal(screen.fileno()), b"")).decode()

    assert process.wait(30) == 0, text
    assert text.count("class high is never predicted") == 1
    assert "mini: 1 warning, printed on stderr" in text


def read_terminal(descriptor: int) -> bytes:
    """What appears next on a terminal; empty once its processes have ended, which Linux reports as an error."""
    try:
        return os.read(descriptor, 4096)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""


def test_a_crash_is_retried_and_each_attempt_has_its_own_log(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"])
    stand_in = install_stand_in(
        tmp_path, "print('attempt', attempt, file=sys.stderr)\nif attempt < 2: sys.exit(70)\ncommit()"
    )

    done = distillchain_here("run", "chain.yaml", "-v", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    assert ChainStatus.parse(done.stdout).stages[0].attempt == 2
    assert "Crashed: the trainer exited with code 70" in done.stderr
    assert "attempt 2 in 1 s (1 of 3 retries used)" in done.stderr
    folder = re.search(r"logs of the trainers are in (.+)", done.stderr)
    assert folder
    logs = sorted(Path(folder[1]).glob("*.log"))
    assert [log.name for log in logs] == ["mini-1.log", "mini-2.log"]
    assert logs[1].read_text() == "attempt 2\n"


def test_more_crashes_than_retries_fail_the_chain(tmp_path: Path):
    write_chain(tmp_path, template={"retries": 1})
    stand_in = install_stand_in(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")

    done = distillchain_here("run", "chain.yaml", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 1
    assert attempts_of(tmp_path) == 2
    mini, tiny = ChainStatus.parse(done.stdout).stages
    log = log_folder(done.stderr) / "mini-2.log"
    assert mini.message == (
        f"the trainer was killed by SIGKILL (the kernel does this when memory runs out); see {log} "
        "(the last of 2 failed attempts)"
    )
    assert tiny.message == "waiting for mini to commit"


@pytest.mark.parametrize(
    "stage, spec",
    [
        ("mini", {"template": {"retries": 0, "export": ONNX}}),
        ("teacher", {"template": {"retries": 0}, "teacher": {"model": "hf://o/t", "fineTune": {}, "export": ONNX}}),
    ],
)
def test_a_trainer_that_is_killed_while_it_exports_has_committed_its_stage(
    tmp_path: Path, stage: str, spec: dict[str, Any]
):
    write_chain(tmp_path, stages=["mini"], **spec)
    stand_in = install_stand_in(tmp_path, "commit()\nos.kill(os.getpid(), signal.SIGKILL)")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("export onnx failed") == 1
    assert (
        f"{stage}: export onnx failed: Crashed: the trainer crashed: the trainer was killed by SIGKILL" in done.stderr
    )


def test_a_trainer_that_is_killed_while_it_writes_the_report_has_failed_no_export(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"], template={"retries": 0})
    stand_in = install_stand_in(tmp_path, "commit()\nos.kill(os.getpid(), signal.SIGKILL)")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    assert "export" not in done.stderr


@pytest.mark.parametrize("code", FATAL_EXIT_CODES)
def test_a_fatal_exit_code_is_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    plan = build_plan(read_chain(str(write_chain(tmp_path))))
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, f"{FAILS}sys.exit({code})")["PYTHONPATH"])

    status = run_chain(plan, RunFolder(tmp_path), view=a_view())

    assert attempts_of(tmp_path) == 1
    assert (status.phase, status.message) == ("Failed", "mini: what to do")


def test_a_failure_ends_with_exit_code_1_and_the_sentence_of_the_trainer(tmp_path: Path):
    write_chain(tmp_path)

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **install_stand_in(tmp_path, f"{FAILS}sys.exit(65)"))

    assert done.returncode == 1
    assert "failed: what to do\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interruption_says_what_is_saved_is_no_retry_and_is_followed_by_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = build_plan(read_chain(str(write_chain(tmp_path, stages=["mini"], template={"retries": 0}))))
    act = (
        f"if attempt == 1:\n    answer('Interrupted', step=7, message='{SAVED}')\n    sys.exit(75)\n"
        "commit()\nif attempt == 2:\n    sys.exit(75)"
    )
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])
    pauses: list[float] = []
    monkeypatch.setattr("distillchain_cli.local.run._pause", lambda _stops, seconds: pauses.append(seconds))

    lines = io.StringIO()

    status = run_chain(plan, RunFolder(tmp_path), view=PlainView(lines, metric="accuracy"))

    assert status.phase == "Succeeded"
    assert attempts_of(tmp_path) == 3
    assert pauses == [1.0, 1.0]
    notes = lines.getvalue().splitlines()
    assert f"stage mini: {SAVED}" in notes
    assert "stage mini: stopped after it was committed; the next attempt makes its export or report" in notes


@pytest.mark.parametrize(
    "act, want",
    [
        pytest.param(f"answer('Interrupted', step=7, message='{SAVED}')\nsys.exit(75)", SAVED, id="saved"),
        pytest.param(
            "answer('Failed', failureClass='StorageUnavailable', message='it is away')\nsys.exit(74)",
            "interrupted before it could save (it is away); the next attempt continues from its last saved state",
            id="could not save",
        ),
        pytest.param(
            "sys.exit(75)",
            "interrupted before it could save; the next attempt continues from its last saved state",
            id="no answer",
        ),
    ],
)
def test_a_stage_that_exceeds_its_timeout_fails_and_says_what_was_saved(tmp_path: Path, act: str, want: str):
    write_chain(tmp_path, stages=["mini"], template={"timeout": "1s"})
    stand_in = install_stand_in(tmp_path, script_until_stopped(act))

    done = distillchain_here("run", "chain.yaml", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 1
    (mini,) = ChainStatus.parse(done.stdout).stages
    assert mini.failure_class == "DeadlineExceeded"
    assert mini.message == f"ran longer than its timeout of 1 s; raise timeout. It was {want}"


def test_an_export_that_exceeds_the_timeout_of_its_stage_fails_alone(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"], template={"timeout": "1s", "export": {"onnx": {}}})
    stand_in = install_stand_in(tmp_path, "commit()\n" + script_until_stopped("sys.exit(75)"))

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    sentence = "DeadlineExceeded: not made within the stage's timeout of 1 s; the next run makes it"
    assert f"mini: export onnx failed: {sentence}" in done.stderr


def test_an_environment_that_the_system_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_chain(tmp_path)
    too_long = {f"LONG_{number}": "x" * 130_000 for number in range(80)}  # more than 8 MB together

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **too_long)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(
        "the trainer cannot be started: Argument list too long; its environment variables have 10"
    )


def test_a_file_beside_the_chain_does_not_replace_a_module_of_python(tmp_path: Path):
    write_chain(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('json.py of the user')")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **install_stand_in(tmp_path, "commit()"))

    assert done.returncode == 0, done.stderr


def test_a_suspended_chain_is_not_run(tmp_path: Path):
    write_chain(tmp_path, suspend=True)

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "spec.suspend: got true, expected false to run; add --set spec.suspend=false\n"


def test_logs_and_temporary_files_are_deleted_after_a_success(tmp_path: Path):
    write_chain(tmp_path)
    scratch = tmp_path / "tmp"
    scratch.mkdir()

    done = distillchain_here(
        "run", "chain.yaml", cwd=tmp_path, TMPDIR=str(scratch), **install_stand_in(tmp_path, "commit()")
    )

    assert done.returncode == 0
    assert list(scratch.iterdir()) == []


@pytest.mark.models
def test_a_fatal_failure_of_the_real_trainer_is_reported_in_its_own_sentence(tmp_path: Path):
    write_chain(tmp_path)
    path = plant_manifest(tmp_path, "{}")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert re.search(rf"^failed: file://{path} cannot be read .*; restore it, or delete it", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_the_pass_of_a_teacher_runs_before_its_stage_and_has_no_row_of_a_model(tmp_path: Path):
    path = write_chain(tmp_path, stages=["mini"])
    path.write_text(path.read_text().replace("- name: mini\n", "- name: mini\n    teacherPass: {}\n"))

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **install_stand_in(tmp_path, "commit()"))

    assert done.returncode == 0, done.stderr
    assert re.findall(r"stage (\S+): started", done.stderr) == ["mini-pass", "mini"]
    table = done.stdout.splitlines()
    assert [line.split()[0] for line in table[:3]] == ["STAGE", "teacher", "mini"]
    assert "mini-pass: the teacher's answers, computed in 0:00:01" in table


def test_a_pass_is_not_made_for_a_committed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_chain(tmp_path, stages=["mini"])
    path.write_text(path.read_text().replace("- name: mini\n", "- name: mini\n    teacherPass: {}\n"))
    write_store(tmp_path / "store", build_plan(read_chain(str(path))), committed=1, monkeypatch=monkeypatch)

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **install_stand_in(tmp_path, "commit()"))

    assert done.returncode == 0, done.stderr
    assert re.findall(r"stage (\S+): started", done.stderr) == ["mini"]
    assert "stage mini-pass: not needed, because what needs it is committed\n" in done.stderr
    assert "mini-pass: not needed, because what needs it is committed" in done.stdout.splitlines()
    assert done.stdout.splitlines()[1].startswith("teacher "), "measured by mini"
