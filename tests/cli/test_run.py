"""`distillchain run` and `plan` without models: how a run ends, is retried and is stopped.

The stand-in plays endings that the real trainer does not show on demand; test_run_models.py has the real one.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cli.parts import (
    COMMAND,
    HEEDING,
    attempts_of,
    clean_environment,
    distillchain,
    distillchain_here,
    example_in_help,
    install_stand_in,
    write_chain,
)
from cluster.waiting import wait_until
from distillchain_api.failures import FATAL_EXIT_CODES
from distillchain_api.graph import build_plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_cli.documents import read_chain
from distillchain_cli.live import PlainView
from distillchain_cli.processes import Place, StopSignals
from distillchain_cli.run import run_chain

pytestmark = pytest.mark.slow

DEADLINE_S = 30
NO_EXIT = "try: main()\nexcept SystemExit: pass"


def status_in(text: str) -> ChainStatus:
    return ChainStatus.parse(text)


def log_folder(stderr: str) -> Path:
    found = re.search(r"logs of the trainers: (.+)", stderr)
    assert found, stderr
    return Path(found[1])


def test_stages_run_in_order_and_the_status_is_the_clusters(tmp_path: Path):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, "commit()")

    done = distillchain("run", "chain.yaml", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    status = status_in(done.stdout)
    assert status.phase == "Succeeded"
    assert [entry.phase for entry in status.stages] == ["Committed", "Committed"]
    assert {c.type: c.status for c in status.conditions}["Succeeded"] == "True"
    talk = [line for line in done.stderr.splitlines() if line.startswith("stage")]
    assert [line.split(":")[0] for line in talk] == ["stage mini", "stage mini", "stage tiny", "stage tiny"]


def test_a_crash_is_tried_again_and_its_log_is_kept_apart(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"])
    stand_in = install_stand_in(
        tmp_path, "print('words', attempt, file=sys.stderr)\nif attempt < 2: sys.exit(70)\ncommit()"
    )

    done = distillchain_here("run", "chain.yaml", "-v", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr
    assert status_in(done.stdout).stages[0].attempt == 2
    assert "Crashed: the trainer ended with exit code 70" in done.stderr
    assert "attempt 2 in 1 s (1 of 3 retries used)" in done.stderr
    folder = re.search(r"logs of the trainers are in (.+)", done.stderr)
    assert folder
    logs = sorted(Path(folder[1]).glob("*.log"))
    assert [log.name for log in logs] == ["mini-1.log", "mini-2.log"]
    assert logs[1].read_text() == "words 2\n"


def test_crashes_beyond_the_retries_fail_the_chain(tmp_path: Path):
    write_chain(tmp_path, template={"retries": 1})
    stand_in = install_stand_in(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")

    done = distillchain_here("run", "chain.yaml", "-o", "json", cwd=tmp_path, **stand_in)

    assert done.returncode == 1
    assert attempts_of(tmp_path) == 2
    mini, tiny = status_in(done.stdout).stages
    log = log_folder(done.stderr) / "mini-2.log"
    assert mini.message == (
        f"the trainer was killed by SIGKILL (the kernel does that when memory runs out); see {log} "
        "(the last of 2 failed attempts)"
    )
    assert tiny.message == "waiting for mini to commit"


@pytest.mark.parametrize("code", FATAL_EXIT_CODES)
def test_a_fatal_exit_code_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    plan = build_plan(read_chain(str(write_chain(tmp_path))))
    act = f"answer('Failed', failureClass='DataInvalid', message='what to do')\nsys.exit({code})"
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])

    status = run_chain(plan, Place(tmp_path), view=PlainView(io.StringIO(), metric="accuracy"))

    assert attempts_of(tmp_path) == 1
    assert (status.phase, status.message) == ("Failed", "mini: what to do")


def test_a_failure_ends_with_1_and_the_trainers_sentence(tmp_path: Path):
    write_chain(tmp_path)
    act = "answer('Failed', failureClass='DataInvalid', message='what to do')\nsys.exit(65)"

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **install_stand_in(tmp_path, act))

    assert done.returncode == 1
    assert "failed: what to do\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interruption_from_elsewhere_is_paused_for_and_does_not_count_against_the_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = build_plan(read_chain(str(write_chain(tmp_path, stages=["mini"], template={"retries": 0}))))
    act = "if attempt < 3:\n    answer('Interrupted', step=1, message='m')\n    sys.exit(75)\ncommit()"
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])
    pauses: list[float] = []
    monkeypatch.setattr("distillchain_cli.run._pause", lambda _stops, seconds: pauses.append(seconds))

    status = run_chain(plan, Place(tmp_path), view=PlainView(io.StringIO(), metric="accuracy"))

    assert status.phase == "Succeeded"
    assert attempts_of(tmp_path) == 3
    assert pauses == [1.0, 1.0]


SAVED = "stopped from outside; its state at step 7 is saved"


def on_stop(act: str) -> str:
    """A trainer that trains until it is told to stop, and then does `act`."""
    return f"""
told = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: told.append(number))
(here / "ready").touch()
while not told: time.sleep(0.02)
{act}
"""


@pytest.mark.parametrize(
    "act, want",
    [
        pytest.param(f"answer('Interrupted', step=7, message='{SAVED}')\nsys.exit(75)", SAVED, id="saved"),
        pytest.param(
            "answer('Failed', failureClass='StorageUnavailable', message='it is away')\nsys.exit(74)",
            "stopped from outside before it could save (it is away); the next run goes on from its last saved state",
            id="could not save",
        ),
        pytest.param(
            "sys.exit(75)",
            "stopped from outside before it could save; the next run goes on from its last saved state",
            id="says nothing",
        ),
    ],
)
def test_what_became_of_the_state_is_told_of_who_outlives_its_timeout(tmp_path: Path, act: str, want: str):
    write_chain(tmp_path, stages=["mini"], template={"timeout": "1s"})

    done = distillchain_here(
        "run", "chain.yaml", "-o", "json", cwd=tmp_path, **install_stand_in(tmp_path, on_stop(act))
    )

    assert done.returncode == 1
    (mini,) = status_in(done.stdout).stages
    assert mini.failure_class == "DeadlineExceeded"
    assert mini.message == f"ran longer than its timeout of 1 s; raise timeout. It was {want}"


def test_a_trainer_that_does_not_end_in_its_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distillchain_cli.processes.GRACE_S", 0.5)
    plan = build_plan(read_chain(str(write_chain(tmp_path, stages=["mini"], template={"timeout": "1s"}))))
    act = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])

    status = run_chain(plan, Place(tmp_path), view=PlainView(io.StringIO(), metric="accuracy"))

    assert status.stages[0].failure_class == "DeadlineExceeded"
    (pid,) = (int(path.read_text()) for path in (tmp_path / "stand-in").rglob("attempt-1"))
    assert not is_running(pid)


def start(folder: Path, *, by: Sequence[str] = HEEDING, **environment: str) -> subprocess.Popen[str]:
    """A run whose terminal is its own group, so that Ctrl-C reaches what a shell's would."""
    return subprocess.Popen(
        [*by, *COMMAND, "run", "chain.yaml"],
        cwd=folder,
        env=clean_environment(folder) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


SAVES_ON_SIGTERM = on_stop(f"""
time.sleep(0.5)
(here / "told").write_text(json.dumps(told))
answer("Interrupted", step=7, message="{SAVED}")
sys.exit(75)
""")


def test_ctrl_c_reaches_the_trainer_once_and_says_how_to_go_on(tmp_path: Path):
    write_chain(tmp_path)
    process = start(tmp_path, **install_stand_in(tmp_path, SAVES_ON_SIGTERM))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 1
    assert json.loads((here / "told").read_text()) == [signal.SIGTERM]
    assert stderr.splitlines()[-4:-1] == [
        "stage mini: stopped",
        f"stopped: {SAVED}",
        "to go on, run the same command again",
    ]


def test_ctrl_c_stays_a_stop_though_saving_takes_longer_than_the_timeout(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"], template={"timeout": "8s"})
    act = (
        f"time.sleep(9)\n(here / 'told').write_text(json.dumps(told))\nanswer('Interrupted', step=7, message='{SAVED}')"
    )
    process = start(tmp_path, **install_stand_in(tmp_path, on_stop(f"{act}\nsys.exit(75)")))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)

    assert json.loads((here / "told").read_text()) == [signal.SIGTERM]
    assert f"stopped: {SAVED}" in stderr.splitlines()


def test_the_third_ctrl_c_kills_a_trainer_that_cannot_save(tmp_path: Path):
    write_chain(tmp_path)
    stubborn = 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(here / "ready").touch()\ntime.sleep(600)'
    process = start(tmp_path, **install_stand_in(tmp_path, stubborn))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    for words in ("saves its state", "once more", "stopped"):
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr
        for line in process.stderr:
            if words in line:
                break
    process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 1
    assert not is_running(int((here / "attempt-1").read_text()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_trainer_saves_and_ends_when_the_command_is_killed(tmp_path: Path):
    write_chain(tmp_path)
    process = start(tmp_path, **install_stand_in(tmp_path, SAVES_ON_SIGTERM))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)
    pid = int((here / "attempt-1").read_text())

    process.kill()
    process.communicate()

    wait_until("the trainer to end", lambda: not is_running(pid), deadline_s=DEADLINE_S)
    assert json.loads((here / "told").read_text()) == [signal.SIGTERM]


def test_a_closed_terminal_lets_the_trainer_save(tmp_path: Path):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, SAVES_ON_SIGTERM)
    here = tmp_path / "stand-in" / "distillchain_trainer"
    ours, its = os.openpty()
    with (tmp_path / "status.json").open("w") as out:
        process = subprocess.Popen(
            [*HEEDING, "setsid", "--ctty", *COMMAND, "run", "chain.yaml", "-o", "json"],
            cwd=tmp_path,
            env=clean_environment(tmp_path) | stand_in,
            stdin=its,
            stdout=out,
            stderr=its,
        )
    os.close(its)
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    os.close(ours)

    assert process.wait(DEADLINE_S) == 1
    assert json.loads((here / "told").read_text()) == [signal.SIGTERM]
    assert status_in((tmp_path / "status.json").read_text()).message == (
        "mini: stopped from outside; its state at step 7 is saved"
    )


def test_ctrl_c_that_ends_the_reader_as_well_lets_the_trainer_save(tmp_path: Path):
    write_chain(tmp_path)
    process = start(tmp_path, **install_stand_in(tmp_path, SAVES_ON_SIGTERM))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    leave(process)  # as `2>&1 | tee log` does
    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(DEADLINE_S) == 1
    assert json.loads((here / "told").read_text()) == [signal.SIGTERM]


def leave(process: subprocess.Popen[str]) -> None:
    """Nobody reads it any more."""
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()


COMMITS_WHEN_TOLD = """
(here / "ready").touch()
while not (here / "go").exists(): time.sleep(0.02)
progress("Train", 120, 600)
commit()
"""


def test_a_run_goes_on_when_nobody_reads_it_any_more(tmp_path: Path):
    write_chain(tmp_path)
    process = start(tmp_path, **install_stand_in(tmp_path, COMMITS_WHEN_TOLD))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    leave(process)  # as `2>&1 | head -1` does
    (here / "go").touch()

    assert process.wait(DEADLINE_S) == 0
    assert attempts_of(tmp_path) == 2


def test_under_nohup_a_run_outlives_its_terminal(tmp_path: Path):
    write_chain(tmp_path)
    process = start(tmp_path, by=["nohup"], **install_stand_in(tmp_path, COMMITS_WHEN_TOLD))
    here = tmp_path / "stand-in" / "distillchain_trainer"
    wait_until("the trainer", lambda: (here / "ready").exists(), deadline_s=DEADLINE_S)

    process.send_signal(signal.SIGHUP)
    (here / "go").touch()
    _, stderr = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0, stderr
    assert attempts_of(tmp_path) == 2


@pytest.fixture
def heeded_hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded_hangup")
def test_a_closed_terminal_is_one_stop_however_often_it_is_told():
    stops = StopSignals()

    with stops.caught():
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)

    assert stops.count == 1


@pytest.mark.parametrize("stream, succeeds", [("stderr", True), ("stdout", False)])
def test_a_full_disk_silences_talk_and_fails_a_result(tmp_path: Path, stream: str, succeeds: bool):
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
def test_a_run_goes_on_without_a_stream_at_all(tmp_path: Path, closed: str):
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
    """One with a mistake of ours in it."""

    def progress(self, line: Progress) -> None:
        raise ZeroDivisionError


def test_a_mistake_of_ours_lets_the_trainer_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = build_plan(read_chain(str(write_chain(tmp_path))))
    act = SAVES_ON_SIGTERM.replace("while not told", "progress('Train', 1, 2)\nwhile not told")
    monkeypatch.setenv("PYTHONPATH", install_stand_in(tmp_path, act)["PYTHONPATH"])

    with pytest.raises(ZeroDivisionError):
        run_chain(plan, Place(tmp_path), view=BrokenView(io.StringIO(), metric="accuracy"))

    here = tmp_path / "stand-in" / "distillchain_trainer"
    assert json.loads((here / "told").read_text()) == [signal.SIGTERM]


def test_progress_is_shown_where_there_is_no_terminal(tmp_path: Path):
    write_chain(tmp_path, stages=["mini"])
    stand_in = install_stand_in(tmp_path, "progress('Train', 120, 600)\ncommit()")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path, **stand_in)

    assert "stage mini: train 120/600\n" in done.stderr


def test_a_suspended_chain_is_not_run(tmp_path: Path):
    write_chain(tmp_path, suspend=True)

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "spec.suspend: got true, expected false to run; add --set spec.suspend=false\n"


def plant_manifest(folder: Path, content: str) -> Path:
    """Something where the first stage's commit would be."""
    stage = build_plan(read_chain(str(folder / "chain.yaml"))).stages[0]
    path = folder / "store" / "stages" / stage.digest / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    return path


@pytest.mark.models
def test_a_fatal_failure_of_the_real_trainer_is_told_in_its_own_sentence(tmp_path: Path):
    write_chain(tmp_path)
    path = plant_manifest(tmp_path, "{}")

    done = distillchain_here("run", "chain.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert re.search(rf"^failed: file://{path} cannot be read .*; restore it, or delete it", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_a_plan_names_what_would_be_trained_and_changes_nothing(tmp_path: Path):
    write_chain(tmp_path)

    done = distillchain("plan", "chain.yaml", cwd=tmp_path)

    mini, tiny = build_plan(read_chain(str(tmp_path / "chain.yaml"))).stages
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "STAGE  DIGEST        TEACHER  COMMITTED  WOULD  WHY",
        f"mini   {mini.digest[:12]}  teacher  no         train  not in the store",
        f"tiny   {tiny.digest[:12]}  mini     no         train  not in the store; after mini",
    ]
    assert done.stderr == (
        f"relay in file://{tmp_path}/store: a run would train mini, tiny; this plan changed nothing\n"
    )
    assert not (tmp_path / "store").exists()


def test_a_plan_tells_what_a_run_would_fail_of(tmp_path: Path):
    write_chain(tmp_path)
    path = plant_manifest(tmp_path, "{}")

    done = distillchain_here("plan", "chain.yaml", "-o", "json", cwd=tmp_path)

    mini = json.loads(done.stdout)["stages"][0]
    assert (mini["action"], mini["committed"]) == ("fail", False)
    assert mini["why"].startswith(f"file://{path} cannot be read")


@pytest.mark.parametrize("command", ["plan", pytest.param("run", marks=pytest.mark.models)])
def test_a_store_that_refuses_is_told_in_a_sentence(tmp_path: Path, command: str):
    write_chain(tmp_path)
    (tmp_path / "store").write_text("a file, not a folder")

    done = distillchain_here(command, "chain.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert "spec.storage.uri: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["nothing"], ["plan", "c.yaml", "-o", "xml"], ["run", "missing.yaml"]])
def test_bad_input_ends_with_2(tmp_path: Path, arguments: list[str]):
    done = distillchain_here(*arguments, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_traceback_comes_only_when_asked_for(tmp_path: Path):
    assert "Traceback" not in distillchain_here("validate", "missing.yaml", cwd=tmp_path).stderr
    assert "Traceback" in distillchain("validate", "missing.yaml", "-v", cwd=tmp_path).stderr


def test_the_version_is_told(tmp_path: Path):
    assert re.fullmatch(r"distillchain \d+\.\d+\.\d+\n", distillchain("--version", cwd=tmp_path).stdout)


@pytest.mark.parametrize("command", [[], ["validate"], ["plan"], ["run"]], ids=" ".join)
def test_the_example_of_each_help_works(tmp_path: Path, command: list[str]):
    write_chain(tmp_path)
    stand_in = install_stand_in(tmp_path, "commit()") if command == ["run"] else {}

    done = distillchain_here(*example_in_help(*command, cwd=tmp_path), cwd=tmp_path, **stand_in)

    assert done.returncode == 0, done.stderr


def test_start_up_imports_nothing_heavy(tmp_path: Path):
    write_chain(tmp_path)
    heavy = {"torch", "transformers", "boto3", "kopf", "kubernetes", "rich.progress"}
    probe = f"import sys; from distillchain_cli.main import main; sys.argv[1:] = ['validate', 'chain.yaml']\n{NO_EXIT}"

    done = subprocess.run(
        [COMMAND[0], "-c", f"{probe}\nprint(*({heavy!r} & set(sys.modules)))"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.stdout.splitlines()[1:] == [""], done.stderr


def test_without_the_operator_extra_a_cluster_command_says_what_to_install(tmp_path: Path):
    hidden = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'kubernetes' else find(name, *more)\n"
    )
    probe = f"{hidden}sys.argv[1:] = ['status', 'relay']\nfrom distillchain_cli.main import main\nsys.exit(main())"

    done = subprocess.run([COMMAND[0], "-c", probe], cwd=tmp_path, check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr == (
        "talking to a cluster needs kubernetes, which is not installed; in a checkout: pip install '.[operator]'\n"
    )


def test_logs_and_work_folders_are_gone_after_a_success(tmp_path: Path):
    write_chain(tmp_path)
    scratch = tmp_path / "tmp"
    scratch.mkdir()

    done = distillchain_here(
        "run", "chain.yaml", cwd=tmp_path, TMPDIR=str(scratch), **install_stand_in(tmp_path, "commit()")
    )

    assert done.returncode == 0
    assert list(scratch.iterdir()) == []
