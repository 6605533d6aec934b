"""Leader election on a real API server, with the rights of config/namespaced and no more."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document
from cluster.controlplane import ControlPlane
from cluster.operator_process import OperatorProcess
from cluster.ports import free_ports
from cluster.waiting import wait_until
from distillchain_operator.cluster import Cluster
from distillchain_operator.lease import Election, LeadershipLost, Timing

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

NAME = "distillchain-operator"
QUICK = Timing(duration_s=2, deadline_s=1.5, retry_s=0.2)
LONG = Timing(duration_s=600, deadline_s=5, retry_s=0.2)  # who waited for its end would wait for ever
WITHIN_S = 60


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, namespace: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    control_plane.kubectl("apply", "--server-side", "-f", str(repository / "crds"))
    control_plane.wait_until_served("distillationchains")
    control_plane.kubectl("apply", "-n", namespace, "-k", str(repository / "config" / "namespaced"))
    control_plane.kubectl("delete", "deployment", "--all", "-n", namespace)
    made = control_plane.kubeconfig_for(namespace, NAME)
    monkeypatch.setenv("KUBECONFIG", str(made))
    return made


@asynccontextmanager
async def candidate(namespace: str, identity: str, timing: Timing) -> AsyncIterator[Election]:
    async with await Cluster.connect() as cluster:
        yield Election(cluster, namespace, NAME, identity=identity, timing=timing)


def lease(control_plane: ControlPlane, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = control_plane.get("lease", NAME, "-n", namespace)["spec"]
    return spec


def make_empty_lease(control_plane: ControlPlane, namespace: str) -> None:
    metadata = {"name": NAME, "namespace": namespace}
    control_plane.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata})


async def test_one_leads_and_the_other_takes_over_when_it_falls_silent_and_not_before(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    async with candidate(namespace, "first", QUICK) as first, candidate(namespace, "second", QUICK) as second:
        async with asyncio.timeout(WITHIN_S):
            await first.acquire()
            keeping = asyncio.create_task(first.keep())
            waiting = asyncio.create_task(second.acquire())
            await asyncio.sleep(2 * QUICK.duration_s)
            assert (first.leads, second.leads, second.stands) == (True, False, True)
            assert not keeping.done()
            keeping.cancel()  # as if it had been killed: nothing is given up
            await waiting
        assert second.leads
        spec = lease(control_plane, namespace)
        assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 1)


def allow_to_delete_leases(control_plane: ControlPlane, namespace: str) -> None:
    """Who may change the owner of what is there already must be allowed to delete it, on some clusters (OpenShift)."""
    role = ("role", "owner", "--verb=delete", "--resource=leases.coordination.k8s.io")
    control_plane.kubectl("create", *role, "-n", namespace)
    binding = ("rolebinding", "owner", "--role=owner", f"--serviceaccount={namespace}:{NAME}")
    control_plane.kubectl("create", *binding, "-n", namespace)


@pytest.mark.parametrize("there_before", [False, True])
async def test_the_lease_goes_with_the_service_account_of_its_holder(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, there_before: bool
):
    """What `helm uninstall` deletes; also where the lease was there before, from another service account."""
    if there_before:
        make_empty_lease(control_plane, namespace)
        allow_to_delete_leases(control_plane, namespace)
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
    control_plane.kubectl("delete", "serviceaccount", NAME, "-n", namespace)

    def is_gone() -> bool:
        return control_plane.kubectl("get", "lease", NAME, "-n", namespace, check=False).returncode != 0

    wait_until("the garbage collector", is_gone, deadline_s=WITHIN_S)


async def test_where_owners_may_not_be_changed_the_lease_is_taken_all_the_same(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    make_empty_lease(control_plane, namespace)
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()

    assert lease(control_plane, namespace)["holderIdentity"] == "first"
    assert "ownerReferences" not in control_plane.get("lease", NAME, "-n", namespace)["metadata"]


async def test_a_lease_that_was_given_up_is_taken_without_waiting_for_its_end(kubeconfig: Path, namespace: str):
    async with candidate(namespace, "first", LONG) as first, candidate(namespace, "second", LONG) as second:
        async with asyncio.timeout(WITHIN_S):
            await first.acquire()
            waiting = asyncio.create_task(second.acquire())
            await asyncio.sleep(5 * LONG.retry_s)
            assert not waiting.done()
            await first.release()
            await waiting
        assert (first.leads, second.leads) == (False, True)


async def test_a_holder_whose_lease_another_took_gives_up_at_once_and_releases_nothing(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    async with candidate(namespace, "first", LONG) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
        taken = json.dumps({"spec": {"holderIdentity": "second"}})
        control_plane.kubectl("patch", "lease", NAME, "-n", namespace, "--type=merge", "-p", taken)
        with pytest.raises(LeadershipLost, match="second leads"):
            await first.keep()
        await first.release()
        assert lease(control_plane, namespace)["holderIdentity"] == "second"


async def test_a_holder_that_cannot_renew_gives_up_before_others_may_take_over(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
        control_plane.kubectl("delete", "rolebinding", f"{NAME}-leader", "-n", namespace)
        with pytest.raises(LeadershipLost, match=r"not renewed for 2 s: leases.*forbidden"):
            await first.keep()
        assert not first.leads


async def test_a_write_that_does_not_concern_the_holder_loses_nothing(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    """As when an answer was lost: the version is another, the holder the same."""
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
        control_plane.kubectl("annotate", "lease", NAME, "-n", namespace, "note=kept")
        keeping = asyncio.create_task(first.keep())
        await asyncio.sleep(2 * QUICK.deadline_s)
        assert not keeping.done()
        keeping.cancel()


async def test_a_lease_without_a_holder_is_taken_even_if_it_says_nothing_at_all(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    metadata = {"name": NAME, "namespace": namespace}
    control_plane.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata})
    async with candidate(namespace, "first", LONG) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
    assert lease(control_plane, namespace)["holderIdentity"] == "first"


async def test_a_candidate_without_the_right_stands_nowhere(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, caplog: pytest.LogCaptureFixture
):
    control_plane.kubectl("delete", "rolebinding", f"{NAME}-leader", "-n", namespace)
    caplog.set_level("INFO")
    async with candidate(namespace, "first", QUICK) as first:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5 * QUICK.retry_s):
                await first.acquire()
        assert not first.stands
    assert [record.why for record in caplog.records if "leases" in getattr(record, "why", "")]  # once, not every time


class Replica(OperatorProcess):
    """An operator of a Deployment, in its namespace, with its Lease."""

    def __init__(self, kubeconfig: Path, folder: Path, name: str, namespace: str) -> None:
        self.health, self.metrics = free_ports(2)
        settings = {
            "HOSTNAME": name,
            "DISTILLCHAIN_NAMESPACES": namespace,
            "DISTILLCHAIN_LEASE": f"{namespace}/{NAME}",
            "DISTILLCHAIN_HEALTH_PORT": str(self.health),
            "DISTILLCHAIN_METRICS_PORT": str(self.metrics),
            "DISTILLCHAIN_LOG_FORMAT": "plain",
        }
        super().__init__(kubeconfig, folder / f"{name}.log", settings)

    def get(self, port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError):
            return ""

    def is_ready(self) -> bool:
        return self.get(self.health, "/readyz") == "ok\n"

    def leads(self) -> bool:
        return "distillchain_leader 1.0" in self.get(self.metrics, "/metrics")


def test_of_two_operators_one_works_and_the_other_goes_on_when_it_is_killed(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, tmp_path: Path
):
    def wait(what: str, probe: Any) -> Any:
        return wait_until(what, probe, deadline_s=WITHIN_S, dump=lambda: f"{first.tail()}\n{second.tail()}")

    def jobs() -> list[str]:
        found = control_plane.get("jobs", "-n", namespace, "-l", "distillchain.io/chain")["items"]
        return sorted(job["metadata"]["labels"]["distillchain.io/chain"] for job in found)

    with (
        Replica(kubeconfig, tmp_path, "first", namespace) as first,
        Replica(kubeconfig, tmp_path, "second", namespace) as second,
    ):
        wait("both to be ready", lambda: first.is_ready() and second.is_ready())
        wait("one to lead", lambda: first.leads() or second.leads())
        leader, standby = (first, second) if first.leads() else (second, first)
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(a_document("before")))
        wait("the first chain's Job", lambda: jobs() == ["before"])
        assert not standby.leads()
        assert "job created" not in standby.log.read_text()

        leader.kill()
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(a_document("after")))
        killed_at = time.monotonic()
        wait("the other to lead", standby.leads)
        assert time.monotonic() - killed_at > Timing().deadline_s - Timing().retry_s  # it may still have been working
        wait("the second chain's Job", lambda: jobs() == ["after", "before"])
        assert standby.log.read_text().count("job created") == 1

        leader.start()  # as the kubelet does
        wait("it to stand by", leader.is_ready)
        assert not leader.leads()
        assert leader.stop() == 0  # also while it waits
        taken = json.dumps({"spec": {"holderIdentity": "third"}})
        control_plane.kubectl("patch", "lease", NAME, "-n", namespace, "--type=merge", "-p", taken)
        wait("it to end", standby.has_ended)
        assert standby.stop() == 3
        assert "leadership lost" in standby.log.read_text()
        assert "Traceback" not in first.log.read_text() + second.log.read_text()


def test_an_operator_that_stops_hands_over_at_once(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, tmp_path: Path
):
    with Replica(kubeconfig, tmp_path, "first", namespace) as first:
        wait_until("it to lead", first.leads, deadline_s=WITHIN_S, dump=first.tail)
        assert first.stop() == 0
        assert lease(control_plane, namespace)["holderIdentity"] == ""
