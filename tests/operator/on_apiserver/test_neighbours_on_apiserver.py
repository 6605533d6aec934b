"""Chains of one namespace on a real API server: a limit of those that run, a stage that two of them share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chain_builders import a_document, own_store
from cluster.controlplane import ControlPlane
from cluster.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT, OperatorProcess
from cluster.waiting import wait_until
from relay import Relay

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator that lets one chain of a namespace run."""
    control_plane.kubectl("apply", "-f", str(repository / "crds"), "-f", str(repository / "config" / "access.yaml"))
    control_plane.restart_controllers()
    kubeconfig = control_plane.kubeconfig_for(OPERATOR_NAMESPACE, SERVICE_ACCOUNT)
    settings = {"DISTILLCHAIN_LOG_FORMAT": "plain", "DISTILLCHAIN_MAX_RUNNING_CHAINS": "1"}
    with OperatorProcess(kubeconfig, tmp_path_factory.mktemp("operator") / "operator.log", settings) as running:
        yield running


def test_chains_take_their_turns_also_after_a_kill(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess
):
    chains = {name: Relay(control_plane, namespace, operator, name) for name in ("c1", "c2", "c3")}
    for name, relay in chains.items():
        relay.apply(a_document(name, stages=["mini"], storage=own_store(name), suspend=name == "c3"))
        relay.wait("a status", lambda relay=relay: "message" in relay.status())
    first, second, third = chains.values()
    second.wait("its place in line", lambda: "waiting for its turn" in second.status()["message"])
    assert not second.jobs()

    operator.kill()
    operator.start()
    third.apply(a_document("c3", stages=["mini"], storage=own_store("c3")))
    third.wait("its place in line", lambda: "waiting for its turn" in third.status()["message"])
    assert [bool(relay.jobs()) for relay in chains.values()] == [True, False, False]

    first.commit("mini")
    second.wait("its turn", second.jobs)
    second.kubectl("delete", "dchain", second.name)
    wait_until("the turn of the last chain", third.jobs, deadline_s=30, dump=operator.tail)
    # Sorted, because they are listed by name.
    events = ["Resumed", "StageStarted", "Suspended", "WaitingForTurn"]
    third.wait("its Events", lambda: sorted(third.events()) == events)


def test_a_stage_that_two_chains_share_is_trained_by_one_at_a_time(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess
):
    first, second = (Relay(control_plane, namespace, operator, name) for name in ("first", "second"))
    first.apply(a_document(first.name, stages=["mini"]))
    first.run(first.wait_for_pod("mini"))
    second.apply(a_document(second.name, stages=["mini"]))
    second.wait("its peer", lambda: second.stage("mini").get("admission") == "WaitingForPeer")
    assert "waiting for chain first" in second.status()["message"]

    first.apply(a_document(first.name, stages=["mini"], suspend=True))
    second.wait("the stage, once the trainer of the first chain has stopped", second.jobs)
    first.apply(a_document(first.name, stages=["mini"]))
    first.wait("its peer", lambda: first.stage("mini").get("admission") == "WaitingForPeer")
    second.commit("mini")
    first.commit("mini", reused=True)
    assert [relay.wait_for_phase("Succeeded")["stages"][0]["reused"] for relay in (first, second)] == [True, False]
