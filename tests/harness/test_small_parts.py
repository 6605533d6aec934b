"""The small parts, without any server."""

from __future__ import annotations

import json
import os
import subprocess
import time
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
    wait_until("its end", lambda: not processes.is_running("failing"), deadline_s=10)

    with pytest.raises(ProcessDied, match=r"failing ended by itself; the end of .*failing\.log:\nno such flag"):
        processes.check("failing")
    processes.stop_all()


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"])
    wait_until("its trap", lambda: "ready" in processes.log("stubborn").read_text(), deadline_s=10)

    processes.stop("stubborn", grace_s=0.1)

    assert not processes.is_running("stubborn")


def test_processes_of_a_dead_owner_are_known_and_stopped_by_the_next(tmp_path: Path) -> None:
    run_python(f"""
from pathlib import Path
from cluster.processes import Processes
Processes(Path({str(tmp_path)!r}), outlive_caller=True).start("left", ["sleep", "1000"])
""").communicate()
    next_owner = Processes(tmp_path)
    assert next_owner.is_running("left")

    next_owner.stop_all()

    assert Processes(tmp_path).names() == []


def test_a_recorded_pid_that_means_another_process_now_is_left_alone(tmp_path: Path) -> None:
    me = identify(os.getpid())
    assert me is not None
    record = {"gone": {"pid": me.pid, "started_ticks": me.started_ticks - 1}}
    (tmp_path / "processes.json").write_text(json.dumps(record))

    Processes(tmp_path).stop_all()  # would end this test otherwise

    assert Processes(tmp_path).names() == []


def test_ports_are_given_once(tmp_path: Path) -> None:
    ours = free_ports(50)
    theirs = run_python("from cluster.ports import free_ports; print(*free_ports(50))").communicate()[0].split()

    assert len({*ours, *map(int, theirs)}) == 100


def test_a_missed_deadline_tells_what_was_seen() -> None:
    started = time.monotonic()

    with pytest.raises(DidNotHappen, match=r"^waited 0\.1 s for the sun\nit rains$"):
        wait_until("the sun", lambda: False, deadline_s=0.1, dump=lambda: "it rains")

    assert time.monotonic() - started < 5


def test_an_image_is_the_same_bytes_for_the_same_files(tmp_path: Path) -> None:
    first, second = (
        build_scratch_image("x.io/x:1", tmp_path / name, files={"a/b": b"1"}, directories=["tmp"]) for name in "12"
    )

    assert first.read_bytes() == second.read_bytes()


def test_a_folder_for_its_owner_only_is_refused_as_a_mount(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with pytest.raises(ClusterError, match=f"`chmod o\\+rx {tmp_path}` opens it"):
        host_python_pod_template(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("there", ["", "go1.19.8", "go1.26.1"])
def test_go_is_the_machines_or_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    program = tmp_path / "go"
    if there:
        program.write_text(f"#!/bin/sh\necho {there}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with build.usable_go() as go:
        version = subprocess.run([go, "version"], capture_output=True, text=True, check=True).stdout

    assert (go == str(program)) == (there == "go1.26.1")
    assert "go1.26" in version
    assert go == str(program) or not Path(go).exists(), "it is gone afterwards"


def test_without_go_and_without_an_index_the_message_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    with pytest.raises(PrerequisiteMissing, match=r"pip cannot bring it .*; install Go 1\.\d+"):
        build.ensure_binaries()


def test_without_root_a_node_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # the suite itself may run as root

    with pytest.raises(PrerequisiteMissing, match="run it as root"):
        prerequisites.ensure_tools()
