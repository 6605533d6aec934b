"""Parts of the test cluster that need no server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import build, prerequisites
from cluster.errors import ClusterError, DidNotHappen, PrerequisiteMissing, ProcessDied
from cluster.images import build_scratch_image, host_python_pod_template
from cluster.ports import free_ports
from cluster.processes import Processes, identify
from cluster.waiting import wait_until
from harness.parts import run_python


def test_a_process_that_dies_at_once_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("failing", ["sh", "-c", "echo no such flag; exit 1"])
    wait_until("it to exit", lambda: not processes.is_running("failing"), deadline_s=10)

    with pytest.raises(ProcessDied, match=r"failing exited unexpectedly; the end of .*failing\.log:\nno such flag"):
        processes.check("failing")
    processes.stop_all()


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace_period(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"])
    wait_until("its trap", lambda: "ready" in processes.log("stubborn").read_text(), deadline_s=10)

    processes.stop("stubborn", grace_s=0.1)

    assert not processes.is_running("stubborn")


def test_the_next_owner_of_a_folder_stops_the_processes_of_a_dead_one(tmp_path: Path) -> None:
    run_python(f"""
from pathlib import Path
from cluster.processes import Processes
Processes(Path({str(tmp_path)!r}), outlive_caller=True).start("left", ["sleep", "1000"])
""").communicate()
    next_owner = Processes(tmp_path)
    assert next_owner.is_running("left")

    next_owner.stop_all()

    assert Processes(tmp_path).names() == []


def test_a_process_that_reuses_a_recorded_pid_is_not_stopped(tmp_path: Path) -> None:
    me = identify(os.getpid())
    assert me is not None
    record = {"gone": {"pid": me.pid, "started_ticks": me.started_ticks - 1}}
    (tmp_path / "processes.json").write_text(json.dumps(record))

    Processes(tmp_path).stop_all()  # would kill this test otherwise

    assert Processes(tmp_path).names() == []


def test_no_port_is_given_to_two_processes(tmp_path: Path) -> None:
    ours = free_ports(50)
    theirs = run_python("from cluster.ports import free_ports; print(*free_ports(50))").communicate()[0].split()

    assert len({*ours, *map(int, theirs)}) == 100


def test_a_missed_deadline_shows_the_state() -> None:
    with pytest.raises(DidNotHappen, match=r"^waited 0\.1 s for the sun\nit rains$"):
        wait_until("the sun", lambda: False, deadline_s=0.1, dump=lambda: "it rains")


def test_the_same_files_give_the_same_image(tmp_path: Path) -> None:
    first, second = (
        build_scratch_image("x.io/x:1", tmp_path / name, files={"a/b": b"1"}, directories=["tmp"]) for name in "12"
    )

    assert first.read_bytes() == second.read_bytes()


def test_a_folder_that_only_its_owner_can_enter_is_refused_as_a_mount(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with pytest.raises(ClusterError, match=f"run `chmod o\\+rx {tmp_path}`"):
        host_python_pod_template(tmp_path)


@pytest.fixture
def installed_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts on PATH a `go` of the given version and nothing else."""

    def install(version: str) -> Path:
        program = tmp_path / "go"
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return program

    return install


def test_a_go_that_is_new_enough_is_used(installed_go: Callable[[str], Path]) -> None:
    program = installed_go("go1.26.1")

    with build.usable_go() as go:
        assert go == str(program)


@pytest.mark.slow
def test_instead_of_an_old_go_the_pinned_one_is_downloaded_and_removed(installed_go: Callable[[str], Path]) -> None:
    installed_go("go1.19.8")

    with build.usable_go() as go:
        version = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout

    assert "go1.26" in version
    assert not Path(go).exists()


def test_without_go_and_without_an_index_the_message_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    with pytest.raises(PrerequisiteMissing, match=r"pip cannot install one .*; install Go 1\.\d+"):
        build.ensure_binaries()


def test_a_node_without_root_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # the tests may run as root

    with pytest.raises(PrerequisiteMissing, match="run it as root"):
        prerequisites.ensure_tools()
