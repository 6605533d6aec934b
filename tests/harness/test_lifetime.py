"""Servers stop with the process that started them, however it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.processes import identify
from cluster.waiting import wait_until
from harness.parts import run_python

pytestmark = pytest.mark.cluster


def test_a_control_plane_stops_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.controlplane import ControlPlane
with ControlPlane(Path({str(tmp_path)!r})) as cluster:
    print(*(cluster.processes.pid(name) for name in cluster.processes.names()), flush=True)
    input()
""")
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        parts = [identify(int(pid)) for pid in output.readline().split()]
        owner.kill()

    assert len(parts) == 3
    wait_until("all parts to exit", lambda: not any(part and part.is_alive() for part in parts), deadline_s=10)


def test_a_server_is_stopped_and_forgotten_when_its_owner_gets_sigterm(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.s3 import S3Server
with S3Server(Path({str(tmp_path)!r})) as s3:
    print(s3.endpoint, flush=True)
    __import__("time").sleep(60)
""")
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        assert output.readline().startswith("http://127.0.0.1:")
        owner.terminate()

    assert owner.returncode != 0
    assert json.loads((tmp_path / "processes.json").read_text()) == {}
