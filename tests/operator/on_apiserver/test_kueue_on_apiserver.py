"""Chains in queues of the real Kueue: admission, quota, preemption, suspension. The tests write the pods' status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chain_builders import IMAGE, a_document, own_store
from cluster.controlplane import ControlPlane
from cluster.kueue import Kueue
from cluster.operator_process import OperatorProcess
from distillchain_api.failures import EXIT_INTERRUPTED
from relay import Relay

pytestmark = pytest.mark.cluster

QUEUE = "gpu-queue"
NODE = "a100-1"
URGENT = {"kueue.x-k8s.io/priority-class": "urgent"}


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of its own: Kueue's webhooks see every Job of a cluster."""
    with ControlPlane(tmp_path_factory.mktemp("kueue-control-plane")) as running, Kueue(running):
        running.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        yield running


@pytest.fixture
def queue(control_plane: ControlPlane, namespace: str, repository: Path) -> str:
    """The queue of examples/kueue with one GPU, and a ClusterQueue of its own for this test. Returns its name."""
    documents = list(yaml.safe_load_all((repository / "examples" / "kueue" / "queue.yaml").read_text()))
    for document in documents:
        if document["kind"] == "ClusterQueue":
            document["metadata"]["name"] = namespace
        if document["kind"] == "LocalQueue":
            document["metadata"]["namespace"] = namespace
            document["spec"]["clusterQueue"] = namespace
    control_plane.apply(*documents)
    return namespace


class Chains:
    """Chains of one stage `mini` that need a GPU each."""

    def __init__(self, control_plane: ControlPlane, namespace: str, operator: OperatorProcess) -> None:
        self._of = (control_plane, namespace, operator)

    def named(self, name: str) -> Relay:
        return Relay(*self._of, name)

    def apply(self, name: str, *, suspend: bool = False, **template: Any) -> Relay:
        relay = self.named(name)
        spec = {"stages": ["mini"], "template": gpu_template(**template), "storage": own_store(name)}
        relay.apply(a_document(name, suspend=suspend, **spec))
        return relay


def gpu_template(**more: Any) -> dict[str, Any]:
    return {"image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": 1}}, "queueName": QUEUE, **more}


@pytest.fixture
def chains(control_plane: ControlPlane, namespace: str, operator: OperatorProcess, queue: str) -> Chains:
    return Chains(control_plane, namespace, operator)


def wait_for_admission(relay: Relay, state: str, stage: str = "mini") -> dict[str, Any]:
    def probe() -> dict[str, Any] | None:
        entry = relay.stage(stage)
        return entry if entry.get("admission") == state else None

    found: dict[str, Any] = relay.wait(f"{relay.name} {state}", probe)
    return found


def schedule(relay: Relay) -> str:
    """The scheduler gives the pod of `mini` a node. Without one, a pod that is deleted is gone at once."""
    pod = relay.wait_for_pod("mini")
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod},
        "target": {"kind": "Node", "name": NODE},
    }
    path = f"/api/v1/namespaces/{relay.namespace}/pods/{pod}/binding"
    relay.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(binding))
    return pod


def start(relay: Relay) -> None:
    relay.run(schedule(relay))
    wait_for_admission(relay, "Admitted")


def wait_for_stop(relay: Relay) -> str:
    """Name of the pod that Kubernetes asks to stop."""

    def probe() -> str | None:
        stopping = [pod for pod in relay.pods("mini") if "deletionTimestamp" in pod["metadata"]]
        return stopping[0]["metadata"]["name"] if stopping else None

    name: str = relay.wait(f"a pod of {relay.name} to be stopped", probe)
    return name


def save_and_stop(relay: Relay) -> None:
    """The trainer saves its state after SIGTERM, and the kubelet removes the pod."""
    pod = wait_for_stop(relay)
    relay.end(pod, exit_code=EXIT_INTERRUPTED)
    remove(relay, pod)


def remove(relay: Relay, pod: str) -> None:
    relay.kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--ignore-not-found")


def reason_of(relay: Relay) -> str:
    condition: dict[str, str] = next(c for c in relay.status()["conditions"] if c["type"] == "Reconciling")
    return condition["reason"]


def describe(relay: Relay) -> str:
    argv = [sys.executable, "-m", "distillchain_cli", "describe", relay.name, "-n", relay.namespace]
    kubeconfig = str(relay.cluster.kubeconfig)
    return subprocess.run([*argv, "--kubeconfig", kubeconfig], capture_output=True, text=True, check=True).stdout


def test_a_chain_runs_on_the_nodes_of_its_flavor_and_the_next_one_waits_for_its_quota(chains: Chains, repository: Path):
    first = chains.named("sst2-queued")
    example = yaml.safe_load((repository / "examples" / "kueue" / "chain.yaml").read_text())
    example["spec"]["template"]["image"] = IMAGE  # this operator has no default
    first.apply(example)
    pod = first.cluster.get("pod", first.wait_for_pod("mini"), "-n", first.namespace)
    assert pod["spec"]["nodeSelector"] == {"accelerator": "a100"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["spec"]["tolerations"]
    assert pod["metadata"]["labels"]["example.com/team"] == "search"
    first.run(pod["metadata"]["name"])
    assert wait_for_admission(first, "Admitted")["phase"] == "Running"

    second = chains.apply("second")
    second.wait("a command", lambda: "to see why" in wait_for_admission(second, "WaitingForQuota")["message"])
    waiting = second.stage("mini")
    assert waiting["phase"] == second.status()["phase"] == "Pending"
    assert reason_of(second) == "WaitingForQuota"
    assert waiting["message"].startswith(f"waiting for quota: Job {waiting['job']} is in queue {QUEUE}; to see why: ")
    second.wait("Kueue's reason", lambda: "insufficient unused quota for nvidia.com/gpu" in describe(second))
    command = waiting["message"].rpartition("to see why: kubectl ")[2]
    assert "insufficient unused quota" in second.kubectl(*command.split())
    assert second.pods() == []

    first.commit("mini")
    second.commit("mini")  # it was created before the second stage of the first chain
    second.wait_for_phase("Succeeded")
    first.commit("tiny")
    first.wait_for_phase("Succeeded")
    assert len(first.jobs()) == 2
    assert first.events().count("StageQueued") == 2


def test_a_preempted_stage_waits_again_and_is_committed_in_the_end(chains: Chains):
    low = chains.apply("low", retries=0)
    start(low)
    high = chains.apply("high", job={"labels": URGENT})

    save_and_stop(low)
    low.wait("the pod to be gone", lambda: not low.pods())
    requeued = wait_for_admission(low, "Requeued")
    low.wait("it to wait", lambda: low.stage("mini")["phase"] == "Pending")
    assert low.stage("mini")["message"].startswith(f"Kueue stopped Job {requeued['job']}, which waits in queue {QUEUE}")
    assert low.status()["phase"] == "Running"  # unlike a chain that has not started
    assert reason_of(low) == "Requeued"
    assert "Preempted to accommodate a workload" in describe(low)

    high.commit("mini")
    high.wait_for_phase("Succeeded")
    low.commit("mini")
    low.wait_for_phase("Succeeded")
    assert low.jobs()[0]["status"].get("failed", 0) == 0
    assert low.stage("mini")["attempt"] == 2
    assert low.events().count("StageRequeued") == 1


def test_a_stage_that_is_preempted_before_its_pod_starts_uses_no_retry(chains: Chains):
    low = chains.apply("low", retries=0)
    schedule(low)
    high = chains.apply("high", job={"labels": URGENT})
    pod = wait_for_stop(low)
    low.write_pod_status(pod, phase="Failed")  # by the kubelet, although nothing has run
    remove(low, pod)

    high.commit("mini")
    low.commit("mini")
    low.wait_for_phase("Succeeded")


def test_a_suspended_chain_frees_its_quota_and_waits_again_when_resumed(chains: Chains):
    first = chains.apply("first")
    start(first)
    second = chains.apply("second")
    wait_for_admission(second, "WaitingForQuota")

    chains.apply("first", suspend=True)
    save_and_stop(first)
    first.wait_for_condition("Suspended")
    assert first.jobs() == []
    wait_for_admission(second, "Admitted")

    chains.apply("first")
    wait_for_admission(first, "WaitingForQuota")
    chains.apply("first", suspend=True)  # while it waits, Kueue must not admit it
    first.wait("its Job to be gone", lambda: not first.jobs())
    chains.apply("first")
    second.commit("mini")
    first.commit("mini")
    first.wait_for_phase("Succeeded")


def test_a_job_that_is_held_back_in_its_workload_continues_once_it_is_active(chains: Chains):
    held = chains.apply("held", retries=0)
    start(held)

    def set_active(active: bool) -> None:
        patch = json.dumps({"spec": {"active": active}})
        (workload,) = held.cluster.get("workloads", "-n", held.namespace)["items"]
        held.kubectl("patch", "workload", workload["metadata"]["name"], "--type=merge", "-p", patch)

    set_active(False)
    save_and_stop(held)
    wait_for_admission(held, "Requeued")
    held.wait("it to wait", lambda: held.stage("mini")["phase"] == "Pending")
    assert len(held.jobs()) == 1

    set_active(True)
    held.commit("mini")
    held.wait_for_phase("Succeeded")


def test_the_pods_of_a_group_are_admitted_together(chains: Chains, queue: str, control_plane: ControlPlane):
    group = chains.apply("group", parallelism={"nodes": 2})
    wait_for_admission(group, "WaitingForQuota")
    group.wait("Kueue's reason", lambda: "insufficient quota for nvidia.com/gpu" in describe(group))
    assert group.pods() == []

    path = "/spec/resourceGroups/0/flavors/0/resources/0/nominalQuota"
    patch = json.dumps([{"op": "replace", "path": path, "value": "2"}])
    control_plane.kubectl("patch", "clusterqueue", queue, "--type=json", "-p", patch)
    group.wait("both pods", lambda: len(group.pods()) == 2)
    wait_for_admission(group, "Admitted")


def test_a_chain_without_any_queue_is_held_if_kueue_manages_all_jobs_until_it_names_one(chains: Chains):
    chain = chains.apply("unlabelled", queueName=None)

    def reason() -> str:
        workloads = chain.cluster.get("workloads", "-n", chain.namespace)["items"]
        found = [each for workload in workloads for each in workload.get("status", {}).get("conditions", [])]
        return next((each["message"] for each in found if each["type"] == "QuotaReserved"), "")

    chain.wait("Kueue's reason", lambda: "LocalQueue  doesn't exist" in reason())
    assert (chain.jobs()[0]["spec"]["suspend"], chain.pods()) == (True, [])
    assert chain.stage("mini")["message"].endswith("if Kueue does, the Job has no queue: set queueName")

    chains.apply("unlabelled")
    start(chain)


def test_a_chain_without_a_queue_uses_the_default_one_of_its_namespace(
    chains: Chains, namespace: str, queue: str, control_plane: ControlPlane
):
    control_plane.apply(
        {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "LocalQueue",
            "metadata": {"name": "default", "namespace": namespace},
            "spec": {"clusterQueue": queue},
        }
    )
    chain = chains.apply("unlabelled", queueName=None)
    start(chain)
    chains.apply("unlabelled", queueName=None, suspend=True)
    save_and_stop(chain)
    chain.wait_for_condition("Suspended")
    assert chain.jobs() == []
