"""What a node and `python -m cluster` leave behind on the machine: nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processes import identify
from cluster.slot import Slot, claim_slot, try_slot
from cluster.waiting import wait_until
from harness.parts import TESTS, run_python

pytestmark = pytest.mark.node

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "long", "namespace": "x"},
    "spec": {"containers": [{"name": "it", "image": "distillchain.io/tests/pause:1"}]},
}


def test_containers_mounts_and_bridge_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.whole import WholeCluster
with WholeCluster(Path({str(tmp_path)!r})) as cluster:
    control_plane = cluster.control_plane
    control_plane.create_namespace("x")
    control_plane.apply({POD!r})
    control_plane.kubectl("wait", "pod/long", "-n", "x", "--for=condition=Ready", "--timeout=60s")
    print(cluster.node.slot.number, flush=True)
    input()
""")
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        slot = Slot(int(output.readline()), None)
        assert str(slot.run) in Path("/proc/self/mountinfo").read_text()
        init_pids = slot.run.glob("containerd/io.containerd.runtime.v2.task/k8s.io/*/init.pid")
        containers = [identity for path in init_pids if (identity := identify(int(path.read_text())))]
        assert len(containers) == 2, "the pod's sandbox and its container"
        owner.kill()

    wait_until("the guard to sweep the slot", lambda: not slot.run.exists(), deadline_s=30)
    assert str(slot.run) not in Path("/proc/self/mountinfo").read_text()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert slot.bridge not in [name for _, name in socket.if_nameindex()]
    assert not [each for each in containers if each.is_alive()]


def test_up_and_down_are_idempotent_and_down_removes_a_killed_cluster(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(TESTS)}

    def command(name: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cluster", name, *(["-o", "json"] if name == "status" else [])]
        return subprocess.run(argv, env=environment, text=True, capture_output=True, check=False)

    try:
        assert "started\n" in command("up").stderr
        assert "already running" in command("up").stderr
        first = command("status")
        assert first.returncode == 0, first.stderr
        for part in json.loads(first.stdout)["parts"]:
            if part["pid"] is not None:  # None for the operator if it runs in a pod
                os.kill(part["pid"], signal.SIGKILL)
        assert command("status").returncode == 3
    finally:
        assert "stopped" in command("down").stderr
    assert "nothing to do" in command("down").stderr
    assert not (tmp_path / "distillchain" / "cluster").exists()


def test_a_slot_is_free_again_after_its_holder_releases_it() -> None:
    first, second = claim_slot(), claim_slot()
    taken = try_slot(first.number)
    first.release()
    again = try_slot(first.number)

    for slot in (first, second, again):
        if slot is not None:
            slot.release()
    assert first.number != second.number
    assert taken is None
    assert again is not None
