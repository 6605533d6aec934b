"""etcd, API server and controllers: each shows the behaviour for which it was put in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.controlplane import ControlPlane
from cluster.errors import CommandFailed
from cluster.processes import identify
from cluster.waiting import wait_until
from harness.parts import run_python

WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.tests.distillchain.io"},
    "spec": {
        "group": "tests.distillchain.io",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        ],
    },
}


@pytest.mark.cluster
def test_an_administrator_may_and_the_version_is_the_pinned_one(control_plane: ControlPlane) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json").stdout)

    assert version["serverVersion"]["gitVersion"] == "v1.34.4"
    assert version["clientVersion"]["minor"] == "34"


@pytest.mark.cluster
def test_a_service_account_may_only_what_rbac_grants(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "serviceaccount", "watcher", "-n", namespace)
    control_plane.kubectl("create", "role", "watcher", "--verb=list", "--resource=pods", "-n", namespace)
    control_plane.kubectl(
        "create", "rolebinding", "watcher", "--role=watcher", f"--serviceaccount={namespace}:watcher", "-n", namespace
    )
    kubeconfig = control_plane.kubeconfig_for(namespace, "watcher")

    control_plane.kubectl(f"--kubeconfig={kubeconfig}", "get", "pods")
    with pytest.raises(CommandFailed, match=r"Forbidden.*cannot list resource \"secrets\""):
        control_plane.kubectl(f"--kubeconfig={kubeconfig}", "get", "secrets")


@pytest.mark.cluster
def test_an_outage_of_the_api_server_loses_nothing(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "configmap", "kept", "-n", namespace)

    control_plane.stop_apiserver()
    assert control_plane.kubectl("get", "namespaces", check=False).returncode != 0
    control_plane.start_apiserver()

    assert control_plane.get("configmap", "kept", "-n", namespace)["metadata"]["name"] == "kept"


@pytest.mark.cluster
def test_dependents_of_a_fresh_kind_are_collected_at_once_after_a_restart_of_the_controllers(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.apply(WIDGETS)
    control_plane.wait_until_served("widgets")
    control_plane.restart_controllers()
    widget = {"apiVersion": "tests.distillchain.io/v1", "kind": "Widget"}
    control_plane.apply(widget | {"metadata": {"name": "owner", "namespace": namespace}})
    uid = control_plane.get("widget", "owner", "-n", namespace)["metadata"]["uid"]
    metadata = {"name": "owned", "namespace": namespace, "ownerReferences": [widget | {"name": "owner", "uid": uid}]}
    control_plane.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    control_plane.kubectl("delete", "widget", "owner", "-n", namespace)

    control_plane.kubectl("wait", "configmap/owned", "-n", namespace, "--for=delete", "--timeout=10s")


@pytest.mark.cluster
def test_a_control_plane_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.controlplane import ControlPlane
with ControlPlane(Path({str(tmp_path)!r})) as cluster:
    print(*(cluster.processes.pid(name) for name in cluster.processes.names()), flush=True)
    input()
""")
    assert owner.stdout is not None
    with owner, owner.stdout as said:
        parts = [identify(int(pid)) for pid in said.readline().split()]
        owner.kill()

    assert len(parts) == 3
    wait_until("all parts to die", lambda: not any(part and part.is_alive() for part in parts), deadline_s=10)


@pytest.mark.cluster
def test_sigterm_stops_everything_in_good_order(tmp_path: Path) -> None:
    owner = run_python(f"""
from pathlib import Path
from cluster.s3 import S3Server
with S3Server(Path({str(tmp_path)!r})) as s3:
    print(s3.endpoint, flush=True)
    __import__("time").sleep(60)
""")
    assert owner.stdout is not None
    with owner, owner.stdout as said:
        assert said.readline().startswith("http://127.0.0.1:")
        owner.terminate()

    assert owner.returncode != 0
    assert json.loads((tmp_path / "processes.json").read_text()) == {}
