"""Chains, Jobs and pods that an earlier build left on a real API server, and today's CRD and operator.

earlier_builds/ has what the operators of two commits stored, without what the API server sets: contract-1.jsonl of
cf728b5, the first that ran a chain from start to end, and contract-2.jsonl of 2ff49cc, the first with today's digests.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster.controlplane import ControlPlane
from cluster.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT, OperatorProcess, install_manifests
from cluster.ports import free_ports
from cluster.waiting import wait_until
from distillchain_api.resource.crd import build_crd
from distillchain_operator.jobs.labels import CHAIN_LABEL, JOB_NAME_LABEL
from metrics_page import scrape, total
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

BUILDS = ("contract-1", "contract-2")
FOLDER = Path(__file__).parents[1] / "earlier_builds"
ANY_OBJECT = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
SETTINGS = {
    "DISTILLCHAIN_LOG_FORMAT": "plain",
    "DISTILLCHAIN_RESYNC_S": "1",
    "DISTILLCHAIN_TRAINER_IMAGE": "registry.example/distillchain-trainer:0.2",  # the chains leave it to the operator
}


class Version(NamedTuple):
    """What changes when an object is created again, or written."""

    uid: str
    version: str


class Upgraded:
    """What an earlier build left in a namespace, and today's operator."""

    def __init__(
        self, control_plane: ControlPlane, namespace: str, operator: OperatorProcess, metrics_port: int
    ) -> None:
        self.cluster, self.namespace, self.operator = control_plane, namespace, operator
        self._metrics_port = metrics_port
        self.before = self.versions()

    def relay(self, chain: str) -> Relay:
        return Relay(self.cluster, self.namespace, self.operator, chain)

    def versions(self) -> dict[str, Version]:
        """The chains and Jobs, by kind and name."""
        items = self.cluster.get("dchain,jobs", "-n", self.namespace)["items"]
        return {
            f"{item['kind']}/{item['metadata']['name']}": Version(
                item["metadata"]["uid"], item["metadata"]["resourceVersion"]
            )
            for item in items
        }

    def wait_for_operator(self) -> None:
        """Wait until it knows all chains, has looked at them twice more, and has nothing left to do."""
        chains = [name for name in self.before if name.startswith("DistillationChain/")]
        looks: set[float] = set()

        def is_done() -> bool:
            page = scrape(self._metrics_port)
            looks.add(total(page, "distillchain_last_resync_timestamp_seconds"))
            has_seen_all = total(page, "distillchain_chains", namespace=self.namespace) == len(chains)
            # The first is the time when the operator began.
            return has_seen_all and len(looks) > 2 and total(page, "distillchain_queue_depth") == 0

        self.relay("running").wait("all chains to be handled", is_done)
        self.after = self.versions()

    def assert_unchanged(self, *chains: str) -> None:
        """Nothing was written to the chains and their Jobs, and no Job of theirs was created."""
        for chain in chains:
            own = (f"DistillationChain/{chain}", f"Job/{chain}-")
            assert {name: self.after[name] for name in self.after if name.startswith(own)} == {
                name: self.before[name] for name in self.before if name.startswith(own)
            }


@pytest.fixture(scope="module")
def upgrades(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Upgraded]]:
    """What each build left, in a namespace of its own, once today's operator has handled all of it."""
    for build in BUILDS:
        control_plane.create_namespace(build)
    # No controller may change what is stored before all of it is there.
    control_plane.processes.stop("kube-controller-manager", grace_s=0.5)
    apply(control_plane, "default", [crd_without_schema()])
    control_plane.wait_until_served("distillationchains")
    for build in BUILDS:
        store(control_plane, build, [json.loads(line) for line in (FOLDER / f"{build}.jsonl").read_text().splitlines()])
    install_manifests(control_plane)
    kubeconfig = control_plane.kubeconfig_for(OPERATOR_NAMESPACE, SERVICE_ACCOUNT)
    (port,) = free_ports(1)
    settings = {**SETTINGS, "DISTILLCHAIN_METRICS_PORT": str(port)}
    operator = OperatorProcess(kubeconfig, tmp_path_factory.mktemp("upgrade") / "operator.log", settings)
    upgraded = {build: Upgraded(control_plane, build, operator, port) for build in BUILDS}
    with operator:
        wait_until(
            "the operator to start",
            lambda: "operator started" in operator.log.read_text(),
            deadline_s=60,
            dump=operator.tail,
        )
        for each in upgraded.values():
            each.wait_for_operator()
        yield upgraded
    assert "Traceback" not in operator.log.read_text()
    control_plane.kubectl("delete", "namespace", *BUILDS, "--wait=false")


def store(control_plane: ControlPlane, namespace: str, objects: list[dict[str, Any]]) -> None:
    """Create the objects with their status, as they were."""
    uids: dict[str, str] = {}
    for kind in ("DistillationChain", "Job", "Pod"):
        of_kind = [copy.deepcopy(item) for item in objects if item["kind"] == kind]
        for item in of_kind:
            connect(item, objects, uids)
        made = json.loads(apply(control_plane, namespace, of_kind, "-o", "json"))["items"]
        uids |= {f"{kind}/{item['metadata']['name']}": item["metadata"]["uid"] for item in made}
        apply(control_plane, namespace, of_kind, "--subresource=status")


def connect(item: dict[str, Any], objects: list[dict[str, Any]], uids: dict[str, str]) -> None:
    """Let a Job or pod belong to the new object that has the name of its old owner."""
    metadata = item["metadata"]
    labels = metadata.get("labels", {})
    if item["kind"] == "Job":
        metadata["ownerReferences"] = [
            owner("distillchain.io/v1alpha1", "DistillationChain", labels[CHAIN_LABEL], uids)
        ]
    if item["kind"] == "Pod":
        job = labels[JOB_NAME_LABEL]
        metadata["ownerReferences"] = [owner("batch/v1", "Job", job, uids)]
        labels |= dict.fromkeys(("controller-uid", "batch.kubernetes.io/controller-uid"), uids[f"Job/{job}"])
        (item["spec"],) = (each["spec"]["template"]["spec"] for each in objects if each["metadata"]["name"] == job)


def owner(version: str, kind: str, name: str, uids: dict[str, str]) -> dict[str, Any]:
    uid = uids[f"{kind}/{name}"]
    return {
        "apiVersion": version,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def crd_without_schema() -> dict[str, Any]:
    """Our CRD as an earlier one would be: it stores fields that today's CRD does not have."""
    document = build_crd()
    (version,) = document["spec"]["versions"]
    version["schema"] = {"openAPIV3Schema": {**ANY_OBJECT, "properties": {"spec": ANY_OBJECT, "status": ANY_OBJECT}}}
    return document


def apply(control_plane: ControlPlane, namespace: str, items: list[dict[str, Any]], *more: str) -> str:
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    return control_plane.kubectl(
        "apply", "--server-side", "--force-conflicts", "-n", namespace, "-f", "-", *more, input=document
    ).stdout


def test_an_upgrade_continues_running_chains_and_leaves_finished_ones_alone(upgrades: dict[str, Upgraded]):
    upgrade = upgrades["contract-2"]
    assert {name: version.uid for name, version in upgrade.after.items()} == {
        name: version.uid for name, version in upgrade.before.items()
    }, "no Job is created or deleted"
    upgrade.assert_unchanged("succeeded", "failed")
    for chain, stages in {"running": ["tiny"], "waiting": ["mini", "tiny"]}.items():
        relay = upgrade.relay(chain)
        for stage in stages:
            relay.commit(stage)
        relay.wait_for_phase("Succeeded")
        assert len(relay.jobs()) == 2


def test_finished_chains_stay_so_when_a_release_gives_stages_other_digests(upgrades: dict[str, Upgraded]):
    upgrade = upgrades["contract-1"]
    upgrade.assert_unchanged("succeeded", "failed")
    # As the upgrade notes say: what an earlier contract committed is trained again, if the chain runs.
    upgrade.cluster.kubectl("delete", "dchain", "waiting", "-n", upgrade.namespace)  # it has the same stages
    running = upgrade.relay("running")
    running.commit("mini")
    running.commit("tiny")
    running.wait_for_phase("Succeeded")

    failed = upgrade.relay("failed")
    failed.retry()
    failed.commit("mini")
    failed.commit("tiny")
    failed.wait_for_phase("Succeeded")
