"""Objects that one user can create, and none may stop the operator for everyone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chain_builders import a_commit, a_document
from cluster.controlplane import ControlPlane
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]


def distillchain(relay: Relay, *args: str) -> subprocess.CompletedProcess[str]:
    connection = ["-n", relay.namespace, "--kubeconfig", str(relay.cluster.kubeconfig)]
    argv = [sys.executable, "-m", "distillchain_cli", *args, *connection]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("levels", [500, 9_000])
def test_a_chain_that_is_nested_too_deeply_fails_alone(relay: Relay, levels: int, tmp_path: Path):
    deep = Relay(relay.cluster, relay.namespace, relay.operator, "deep")
    document = a_document() | {"metadata": {"name": "deep"}}
    document["spec"]["template"]["pod"] = {"spec": {"x": "HERE"}}
    file = tmp_path / "deep.json"
    file.write_text(json.dumps(document).replace('"HERE"', '{"a":' * levels + "1" + "}" * levels))
    relay.kubectl("create", "--validate=false", "-f", str(file))
    deep.kubectl("wait", "dchain/deep", "--for=condition=Stalled", "--timeout=30s")
    want = "spec.template.pod.spec: nested more than 100 levels deep, expected at most that; remove the inner ones"
    assert want in relay.kubectl("get", "dchain", "deep", "-o", "jsonpath={.status.message}")
    relay.wait("the event", lambda: "InvalidSpec" in deep.events())

    relay.operator.kill()
    relay.operator.start()
    relay.apply(a_document(stages=["mini"]))
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")
    assert not relay.operator.has_ended()

    listed = distillchain(relay, "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.count(relay.namespace) == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()[1:]} >= {"deep", "relay"}
    shown = distillchain(relay, "status", "deep")
    assert want in shown.stdout
    assert "Traceback" not in shown.stderr


def test_a_job_that_lost_its_labels_gets_them_back_when_its_pod_has_ended(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    name, labels = relay.jobs("mini")[0]["metadata"]["name"], relay.jobs("mini")[0]["metadata"]["labels"]
    relay.kubectl("label", "job", name, "distillchain.io/chain-", "distillchain.io/stage-")
    relay.end(pod, exit_code=0, message=a_commit(relay.planned("mini")).to_json())
    relay.wait_for_phase("Succeeded")
    assert [job["metadata"]["labels"] for job in relay.jobs("mini")] == [labels]


@pytest.mark.parametrize("cascade, stops", [("background", True), ("orphan", False)])
def test_a_deleted_chain_that_a_finalizer_keeps_stops_its_pod_and_says_so(relay: Relay, cascade: str, stops: bool):
    document = a_document(stages=["mini"])
    document["metadata"]["finalizers"] = ["example.com/keep"]
    relay.apply(document)
    relay.run(relay.wait_for_pod("mini"))
    relay.wait("mini running", lambda: relay.stage("mini").get("attempt") == 1)
    relay.kubectl("delete", "dchain", "relay", "--wait=false", f"--cascade={cascade}")

    def stopped() -> bool:
        return relay.wait_for_phase("Suspended")["message"] == (
            "being deleted; still kept by finalizer example.com/keep"
        )

    relay.wait("its status", stopped)
    (job,) = relay.jobs("mini")
    assert (job["spec"]["suspend"], "ownerReferences" in job["metadata"]) == (stops, stops)
    relay.kubectl("patch", "dchain", "relay", "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    relay.wait("its end", lambda: bool(relay.jobs("mini")) is not stops)


def test_the_operator_survives_that_its_crd_is_deleted_and_applied_again(
    relay: Relay, control_plane: ControlPlane, repository: Path
):
    relay.apply(a_document(stages=["mini"]))
    relay.wait_for_pod("mini")
    control_plane.kubectl("delete", "crd", "distillationchains.distillchain.io")
    relay.wait("a refused watch", lambda: "watch refused, will be retried" in relay.operator.log.read_text())
    control_plane.kubectl("apply", "--server-side", "-f", str(repository / "crds"))
    control_plane.wait_until_served("distillationchains")
    control_plane.restart_controllers()
    relay.apply(a_document(stages=["tiny"]))
    relay.commit("tiny")
    assert not relay.operator.has_ended()
