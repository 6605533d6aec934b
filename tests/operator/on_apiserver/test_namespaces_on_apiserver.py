"""Operators with the rights of config/, for the whole cluster and for some namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import pytest

from chain_builders import a_commit, a_document
from cluster.controlplane import ControlPlane
from cluster.errors import CommandFailed
from cluster.operator_process import OperatorProcess
from cluster.ports import free_ports
from distillchain_operator.api_server.cluster import Cluster
from distillchain_operator.api_server.connection import Connection, Content
from metrics_page import scrape, total
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]


@pytest.fixture
def kubeconfig(
    control_plane: ControlPlane, namespace: str, operator: OperatorProcess, repository: Path
) -> Iterator[Path]:
    """For an operator with a Role in `namespace`; the operator of the whole cluster is stopped meanwhile."""
    operator.kill()
    control_plane.kubectl("apply", "-n", namespace, "-k", str(repository / "config" / "namespaced"))
    yield control_plane.kubeconfig_for(namespace, "distillchain-operator")
    operator.start()


@contextmanager
def operator_of(kubeconfig: Path, folder: Path, *namespaces: str, **settings: str) -> Iterator[OperatorProcess]:
    """An operator of these namespaces, which ends without an error."""
    settings |= {"DISTILLCHAIN_NAMESPACES": ",".join(namespaces)}
    with OperatorProcess(kubeconfig, folder / "operator.log", settings) as running:
        yield running
        assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def test_the_namespaced_role_is_enough_for_its_namespace(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
):
    with operator_of(kubeconfig, tmp_path, namespace) as own:
        relay = Relay(control_plane, namespace, own)
        relay.apply(a_document(stages=["mini"]))
        relay.commit("mini")
        relay.wait_for_phase("Succeeded")
        relay.wait("the last event", lambda: "ChainSucceeded" in relay.events())


def test_a_namespace_that_is_created_late_or_deleted_or_created_again_does_not_affect_the_others(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
):
    other = f"{namespace}-2"
    role = control_plane.get("role", "distillchain-operator", "-n", namespace)
    with operator_of(kubeconfig, tmp_path, namespace, other) as own:
        stays, comes_and_goes = Relay(control_plane, namespace, own), Relay(control_plane, other, own)

        def create_other() -> None:
            control_plane.create_namespace(other)
            control_plane.apply(copied(role, other))
            subject = f"--serviceaccount={namespace}:distillchain-operator"
            comes_and_goes.kubectl("create", "rolebinding", "operator", "--role=distillchain-operator", subject)
            comes_and_goes.apply(a_document(stages=["mini"]))
            comes_and_goes.commit("mini")

        stays.apply(a_document())
        stays.commit("mini")
        create_other()
        control_plane.kubectl("delete", "namespace", other)
        stays.commit("tiny")
        create_other()
        assert not own.has_ended()


@pytest.mark.parametrize("news", ["the watches end", "a request is refused"])
def test_an_operator_continues_when_a_role_that_it_lost_is_restored(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path, news: str
):
    with operator_of(kubeconfig, tmp_path, namespace) as own:
        relay = Relay(control_plane, namespace, own)
        relay.apply(a_document())
        relay.commit("mini")
        pod, answer = relay.wait_for_pod("tiny"), a_commit(relay.planned("tiny"))
        binding = control_plane.get("rolebinding", "distillchain-operator", "-n", namespace)
        relay.kubectl("delete", "rolebinding", "distillchain-operator")
        if news == "the watches end":
            control_plane.restart_apiserver()
        else:  # the watches go on, because the right to watch is checked when they begin
            relay.end(pod, exit_code=0, message=answer.to_json())
        relay.wait("a warning", lambda: f'"refused": "{namespace}"' in own.log.read_text())
        control_plane.apply(copied(binding, namespace))
        if news == "the watches end":
            relay.end(pod, exit_code=0, message=answer.to_json())
        relay.wait_for_phase("Succeeded")


def test_an_idle_operator_sends_nothing_but_its_watches(
    control_plane: ControlPlane, namespace: str, kubeconfig: Path, tmp_path: Path
):
    (port,) = free_ports(1)

    def own_requests() -> tuple[float, float]:
        """How many the operator has counted, and the time of its last look at all chains."""
        page = scrape(port)
        return total(page, "distillchain_api_requests_total"), total(page, "distillchain_last_resync_timestamp_seconds")

    def lists_of_chains() -> float:
        page = control_plane.kubectl("get", "--raw", "/metrics").stdout
        # Those of the whole cluster are the garbage collector's.
        return total(page, "apiserver_request_total", resource="distillationchains", scope="namespace", verb="LIST")

    def sends_nothing() -> bool:
        """For some seconds with further looks. Kubernetes itself lists the chains of a namespace that it deletes."""
        (before, since), listed = own_requests(), lists_of_chains()
        assert listed > 0
        relay.wait("further looks", lambda: own_requests()[1] > since + 6)
        assert own_requests()[0] == before
        return lists_of_chains() == listed

    settings = {"DISTILLCHAIN_RESYNC_S": "0.5", "DISTILLCHAIN_METRICS_PORT": str(port)}
    with operator_of(kubeconfig, tmp_path, namespace, **settings) as own:
        relay = Relay(control_plane, namespace, own)
        relay.apply(a_document(suspend=True))
        relay.wait_for_phase("Suspended")
        first = own_requests()[1]
        relay.wait("a look at all chains", lambda: own_requests()[1] > first + 1)
        relay.wait("no list of chains", sends_nothing)


async def test_to_find_out_whether_a_namespace_can_be_read_no_more_than_one_chain_is_sent(
    relay: Relay, control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
):
    for name in ("one", "two"):
        relay.apply(a_document(name, suspend=True))
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    connection = await Connection.open(answered=lambda *_: None)
    answers: list[dict[str, Any]] = []
    request = connection.request

    async def recorded(method: str, path: str, **content: Unpack[Content]) -> dict[str, Any]:
        answers.append(await request(method, path, **content))
        return answers[-1]

    monkeypatch.setattr(connection, "request", recorded)
    async with Cluster(connection) as cluster:
        await cluster.check_chains(relay.namespace)
    assert [len(answer["items"]) for answer in answers] == [1]


def copied(document: dict[str, Any], namespace: str) -> dict[str, Any]:
    return document | {"metadata": {"name": document["metadata"]["name"], "namespace": namespace}}


def test_the_operator_has_no_rights_that_it_does_not_need(relay: Relay, control_plane: ControlPlane):
    user = "--as=system:serviceaccount:distillchain-system:distillchain-operator"

    def may(verb: str, resource: str) -> bool:
        done = control_plane.kubectl("auth", "can-i", verb, resource, user, "-n", relay.namespace, check=False)
        return done.stdout.strip() == "yes"

    assert may("create", "jobs.batch")
    assert not may("get", "secrets")
    assert not may("delete", "pods")
    assert not may("update", "distillationchains.distillchain.io")
    with pytest.raises(CommandFailed, match="forbidden"):
        control_plane.kubectl("get", "secrets", user, "-n", relay.namespace)
