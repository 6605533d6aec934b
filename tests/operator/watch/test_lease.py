"""Leader election on a real API server, with the rights of config/namespaced and no more."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document, own_store
from cluster.controlplane import ControlPlane
from cluster.operator_process import OperatorProcess
from cluster.ports import free_ports
from cluster.waiting import wait_until
from distillchain_operator.api_server.cluster import Cluster
from distillchain_operator.api_server.lease import Election, LeadershipLost, Timing, new_identity

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

NAME = "distillchain-operator"
QUICK = Timing(duration_s=2, deadline_s=1.5, retry_s=0.2)
LONG = Timing(duration_s=600, deadline_s=5, retry_s=0.2)  # does not expire within a test
WITHIN_S = 60


@pytest.fixture
def kubeconfig(control_plane: ControlPlane, namespace: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    control_plane.kubectl("apply", "--server-side", "-f", str(repository / "crds"))
    control_plane.wait_until_served("distillationchains")
    control_plane.kubectl("apply", "-n", namespace, "-k", str(repository / "config" / "namespaced"))
    control_plane.kubectl("delete", "deployment", "--all", "-n", namespace)
    path = control_plane.kubeconfig_for(namespace, NAME)
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


@asynccontextmanager
async def candidate(namespace: str, identity: str, timing: Timing) -> AsyncIterator[Election]:
    async with await Cluster.connect() as cluster:
        yield Election(cluster, namespace, NAME, identity=identity, timing=timing)


def lease(control_plane: ControlPlane, namespace: str) -> dict[str, Any]:
    spec: dict[str, Any] = control_plane.get("lease", NAME, "-n", namespace)["spec"]
    return spec


def create_empty_lease(control_plane: ControlPlane, namespace: str) -> None:
    metadata = {"name": NAME, "namespace": namespace}
    control_plane.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata})


async def test_one_leads_and_the_other_takes_over_only_when_it_stops_renewing(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    async with candidate(namespace, "first", QUICK) as first, candidate(namespace, "second", QUICK) as second:
        async with asyncio.timeout(WITHIN_S):
            await first.acquire()
            keeping = asyncio.create_task(first.keep())
            waiting = asyncio.create_task(second.acquire())
            await asyncio.sleep(2 * QUICK.duration_s)
            assert (first.leads, second.leads, second.is_candidate) == (True, False, True)
            assert not keeping.done()
            keeping.cancel()  # as if it were killed: the lease is not released
            await waiting
        assert second.leads
        spec = lease(control_plane, namespace)
        assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 1)


def allow_to_delete_leases(control_plane: ControlPlane, namespace: str) -> None:
    """Some clusters (OpenShift) require this right for changing the owner of an existing object."""
    role = ("role", "owner", "--verb=delete", "--resource=leases.coordination.k8s.io")
    control_plane.kubectl("create", *role, "-n", namespace)
    binding = ("rolebinding", "owner", "--role=owner", f"--serviceaccount={namespace}:{NAME}")
    control_plane.kubectl("create", *binding, "-n", namespace)


@pytest.mark.parametrize("exists", [False, True])
async def test_the_lease_is_deleted_with_the_service_account_of_its_holder(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, exists: bool
):
    """`helm uninstall` deletes the account; the lease may have existed before."""
    if exists:
        create_empty_lease(control_plane, namespace)
        allow_to_delete_leases(control_plane, namespace)
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
    control_plane.kubectl("delete", "serviceaccount", NAME, "-n", namespace)

    def is_gone() -> bool:
        return control_plane.kubectl("get", "lease", NAME, "-n", namespace, check=False).returncode != 0

    wait_until("the garbage collector", is_gone, deadline_s=WITHIN_S)


async def test_a_lease_whose_owners_may_not_be_changed_is_taken_without_an_owner(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    create_empty_lease(control_plane, namespace)
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()

    assert lease(control_plane, namespace)["holderIdentity"] == "first"
    assert "ownerReferences" not in control_plane.get("lease", NAME, "-n", namespace)["metadata"]


async def test_a_restarted_container_takes_the_lease_of_its_own_pod_at_once(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOSTNAME", NAME)
    monkeypatch.setenv("POD_UID", "uid-of-a-pod")
    killed, restarted = new_identity(), new_identity()
    monkeypatch.setenv("POD_UID", "uid-of-another-pod")
    other = new_identity()
    async with candidate(namespace, killed, LONG) as holder, candidate(namespace, restarted, LONG) as next_one:
        async with asyncio.timeout(WITHIN_S):
            await holder.acquire()
            await next_one.acquire()
        async with candidate(namespace, other, LONG) as last:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(5 * LONG.retry_s):
                    await last.acquire()
    assert lease(control_plane, namespace)["holderIdentity"] == restarted


async def test_a_released_lease_is_taken_before_it_expires(kubeconfig: Path, namespace: str):
    async with candidate(namespace, "first", LONG) as first, candidate(namespace, "second", LONG) as second:
        async with asyncio.timeout(WITHIN_S):
            await first.acquire()
            waiting = asyncio.create_task(second.acquire())
            await asyncio.sleep(5 * LONG.retry_s)
            assert not waiting.done()
            await first.release()
            await waiting
        assert (first.leads, second.leads) == (False, True)


async def test_a_holder_that_lost_its_lease_stops_at_once_and_does_not_release_it(
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


async def test_a_holder_that_cannot_renew_stops_before_others_may_take_over(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
        control_plane.kubectl("delete", "rolebinding", f"{NAME}-leader", "-n", namespace)
        with pytest.raises(LeadershipLost, match=r"not renewed for 2 s: leases.*forbidden"):
            await first.keep()
        assert not first.leads


async def test_a_write_that_keeps_the_holder_does_not_end_its_leadership(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    """As after a lost answer, the version differs and the holder does not."""
    async with candidate(namespace, "first", QUICK) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
        control_plane.kubectl("annotate", "lease", NAME, "-n", namespace, "note=kept")
        keeping = asyncio.create_task(first.keep())
        await asyncio.sleep(2 * QUICK.deadline_s)
        assert not keeping.done()
        keeping.cancel()


async def test_a_holder_stops_if_the_lease_is_older_than_what_it_wrote_because_etcd_was_restored(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str
):
    async with candidate(namespace, "first", LONG) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
        older = json.dumps({"spec": {"renewTime": "2026-01-01T12:00:00.000000Z"}})
        control_plane.kubectl("patch", "lease", NAME, "-n", namespace, "--type=merge", "-p", older)
        with pytest.raises(LeadershipLost, match="etcd was restored"):
            await first.keep()


async def test_a_lease_with_an_empty_spec_is_taken(kubeconfig: Path, control_plane: ControlPlane, namespace: str):
    metadata = {"name": NAME, "namespace": namespace}
    control_plane.apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata})
    async with candidate(namespace, "first", LONG) as first, asyncio.timeout(WITHIN_S):
        await first.acquire()
    assert lease(control_plane, namespace)["holderIdentity"] == "first"


async def test_without_the_right_to_read_the_lease_there_is_no_candidate(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, caplog: pytest.LogCaptureFixture
):
    control_plane.kubectl("delete", "rolebinding", f"{NAME}-leader", "-n", namespace)
    caplog.set_level("INFO")
    async with candidate(namespace, "first", QUICK) as first:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5 * QUICK.retry_s):
                await first.acquire()
        assert not first.is_candidate
    assert [
        record.why for record in caplog.records if "leases" in getattr(record, "why", "")
    ]  # once, not at every retry


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


def test_of_two_operators_one_works_and_the_other_takes_over_when_it_is_killed(
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
        after = a_document("after", storage=own_store("after"))  # else it would wait for the chain before
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(after))
        killed_at = time.monotonic()
        wait("the other to lead", standby.leads)
        assert (
            time.monotonic() - killed_at > Timing().deadline_s - Timing().retry_s
        )  # the killed one may work until then
        wait("the second chain's Job", lambda: jobs() == ["after", "before"])
        assert standby.log.read_text().count("job created") == 1

        leader.start()  # as the kubelet does
        wait("it to stand by", leader.is_ready)
        assert not leader.leads()
        assert leader.stop() == 0  # also on standby
        taken = json.dumps({"spec": {"holderIdentity": "third"}})
        control_plane.kubectl("patch", "lease", NAME, "-n", namespace, "--type=merge", "-p", taken)
        wait("it to end", standby.has_ended)
        assert standby.stop() == 3
        assert "leadership lost" in standby.log.read_text()
        assert "Traceback" not in first.log.read_text() + second.log.read_text()


def test_an_operator_that_stops_releases_its_lease_at_once(
    kubeconfig: Path, control_plane: ControlPlane, namespace: str, tmp_path: Path
):
    with Replica(kubeconfig, tmp_path, "first", namespace) as first, ThreadPoolExecutor() as pool:
        wait_until("it to lead", first.leads, deadline_s=WITHIN_S, dump=first.tail)
        # Events a moment before, and a scraper that keeps its connection open.
        control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=json.dumps(a_document("busy")))
        scraper = http.client.HTTPConnection("127.0.0.1", first.metrics)
        scraper.request("GET", "/metrics")
        scraper.getresponse().read()
        stopped_at = time.monotonic()
        code = pool.submit(first.stop)
        wait_until(
            "the release",
            lambda: lease(control_plane, namespace)["holderIdentity"] == "",
            deadline_s=WITHIN_S,
            dump=first.tail,
        )
        assert time.monotonic() - stopped_at < 3  # usually 0.3; kopf alone would wait for 5
        assert code.result() == 0
        scraper.close()
