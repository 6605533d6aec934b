"""A stage of two pods that find each other by their Service: real containers, real collectives (gloo), no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.dns import ClusterDNS
from cluster.images import host_python_pod_template
from cluster.whole import WholeCluster
from e2e.chains import Chains, NewChain
from e2e.conftest import Relay, femto_stage

pytestmark = [pytest.mark.node, pytest.mark.timeout(900)]

INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture
def dns(whole_cluster: WholeCluster) -> Iterator[None]:
    with ClusterDNS(whole_cluster.control_plane, whole_cluster.node.gateway):
        yield


def pods_of(chains: Chains) -> dict[int, Any]:
    """The running pods by node."""
    items = chains.cluster.control_plane.get("pods", "-n", chains.namespace)["items"]
    running = [
        pod for pod in items if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]
    return {int(pod["metadata"]["annotations"][INDEX]): pod for pod in running}


@pytest.mark.usefixtures("dns")
def test_two_pods_train_one_stage_and_start_again_together_after_an_eviction_and_a_suspension(
    chains: Chains,
    relay: Relay,
    new_chain: NewChain,
):
    training = {"learningRate": 1e-3, "epochs": 10}
    # Two ranks share the two cores.
    python = host_python_pod_template(environment={"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"})
    stage = femto_stage(relay, training=training, saveInterval="2s", retries=0)
    chain = new_chain("pair", [stage], parallelism={"nodes": 2}, pod=python)
    chain["spec"]["teacher"] = {"model": relay.tiny}  # a small one: its logits take seconds with one thread
    chains.apply(chain)
    first = chains.wait_until("node 0 to train", lambda: chains.running_pod("femto"))
    before = pods_of(chains)
    assert before[0]["metadata"]["name"] == first
    chains.cluster.node.evict(chains.namespace, before[1]["metadata"]["name"])

    chains.wait_until("node 0 to train again", lambda: chains.running_pod("femto") not in (None, first))
    chains.suspend("pair", True)
    assert chains.wait("pair", "Suspended").stages[-1].phase == "Suspended"
    assert pods_of(chains) == {}
    chains.suspend("pair", False)
    status = chains.wait("pair", "Succeeded")
    femto = status.stage_named("femto")
    assert femto is not None
    assert femto.attempt == 3
    run = chains.manifest(chain, femto.digest).run
    assert run.resumed
    (job,) = chains.cluster.control_plane.get("jobs", "-n", chains.namespace)["items"]
    assert job["status"].get("failed", 0) == 0, json.dumps(job["status"])
