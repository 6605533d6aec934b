"""The operator's metrics, in the registry and over HTTP."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from chain_builders import a_commit, a_plan
from cluster.ports import free_ports
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus, Condition, StageStatus
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.metrics.endpoints import metrics_page, probes, serve
from distillchain_operator.metrics.operator_metrics import NAMED_CHAINS, Metrics
from distillchain_operator.metrics.stage_metrics import PodsNow
from distillchain_operator.status.committed import committed_entry

RELAY, OTHER = ChainKey("ml", "relay"), ChainKey("nlp", "other")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Label values in order -> value, of one metric."""
    found = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in found if sample.name == name}


def a_status(chain_phase: Any = "Running", *, stalled: str = "", **entry: Any) -> ChainStatus:
    stage = StageStatus(**{"name": "mini", "phase": "Running", "digest": "d", "job": "relay-mini-1", **entry})
    reason = Condition(
        type="Stalled",
        status="True" if stalled else "False",
        reason=stalled or "StageRunning",
        observed_generation=1,
        last_transition_time="2026-01-01T12:00:00Z",
    )
    return ChainStatus(phase=chain_phase, stages=[stage], conditions=[reason])


def test_chains_are_counted_by_phase_and_a_deleted_one_disappears():
    metrics = Metrics()
    metrics.reconciled(RELAY, a_status("Running"))
    metrics.reconciled(OTHER, a_status("Failed", phase="Failed"))
    chains = samples(metrics, "distillchain_chains")
    assert {labels: value for labels, value in chains.items() if value} == {("ml", "Running"): 1, ("nlp", "Failed"): 1}
    assert chains["ml", "Failed"] == 0  # an alert on an increase needs a zero first
    metrics.forget(RELAY)
    assert {namespace for namespace, _ in samples(metrics, "distillchain_chains")} == {"nlp"}


def test_a_resync_forgets_chains_that_were_deleted_without_an_event_and_records_its_time():
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.reconciled(RELAY, a_status())
    metrics.reconciled(OTHER, a_status())
    clock.now = 1300
    metrics.resynced([OTHER])
    assert {labels[1] for labels in samples(metrics, "distillchain_stage_since_timestamp_seconds")} == {"other"}
    assert samples(metrics, "distillchain_last_resync_timestamp_seconds") == {(): 1300}
    clock.now = 1600
    metrics.resynced([OTHER], is_complete=False)
    assert samples(metrics, "distillchain_last_resync_timestamp_seconds") == {(): 1300}


def test_a_stage_is_pending_since_its_first_reconcile_and_running_since_its_pod_was_created():
    clock = Clock()
    metrics = Metrics(clock=clock)

    def since() -> dict[tuple[str, ...], float]:
        return samples(metrics, "distillchain_stage_since_timestamp_seconds")

    metrics.reconciled(RELAY, a_status())
    clock.now = 1060
    metrics.reconciled(RELAY, a_status())
    assert since() == {("ml", "relay", "mini", "pending"): 1000}
    metrics.reconciled(RELAY, a_status(), runs_since="1970-01-01T00:17:00Z")
    assert since() == {("ml", "relay", "mini", "running"): 1020}
    metrics.reconciled(RELAY, a_status())  # evicted
    assert since() == {("ml", "relay", "mini", "pending"): 1060}
    metrics.reconciled(RELAY, a_status("Suspended", phase="Suspended"))
    assert since() == {}


@pytest.mark.parametrize(
    "pods, since",
    [(PodsNow(), 600), (PodsNow(latest={"mini": "1970-01-01T02:00:00Z", "tiny": "1970-01-01T03:00:00Z"}), 7200)],
)
def test_after_a_restart_a_pending_stage_counts_from_its_job_or_its_last_pod(pods: PodsNow, since: float):
    """A pod that was evicted after hours would otherwise look as if the stage had waited as long."""
    metrics = Metrics()
    metrics.reconciled(RELAY, a_status(started_at="1970-01-01T00:10:00Z"), pods=pods)
    assert samples(metrics, "distillchain_stage_since_timestamp_seconds") == {("ml", "relay", "mini", "pending"): since}


def test_the_number_of_named_chains_is_bounded_and_the_oldest_are_named():
    clock = Clock()
    metrics = Metrics(clock=clock)
    for number in range(NAMED_CHAINS + 3):
        clock.now += 1
        metrics.reconciled(ChainKey("ml", f"chain-{number}"), a_status(stalled="PodRejected"))
    named = samples(metrics, "distillchain_stage_since_timestamp_seconds")
    assert len(named) == NAMED_CHAINS
    assert ("ml", "chain-0", "mini", "pending") in named
    assert ("ml", f"chain-{NAMED_CHAINS}", "mini", "pending") not in named
    assert len(samples(metrics, "distillchain_chain_stalled")) == NAMED_CHAINS


def test_a_stalled_chain_is_named_with_its_reason():
    metrics = Metrics()
    metrics.reconciled(RELAY, a_status("Failed", stalled="GateNotMet", phase="Failed"))
    metrics.reconciled(OTHER, a_status())
    assert samples(metrics, "distillchain_chain_stalled") == {("ml", "relay", "GateNotMet"): 1}


def test_commits_failures_and_replaced_pods_are_counted_once():
    metrics, plan = Metrics(), a_plan(stages=["mini"])
    entry = committed_entry(plan.stages[0], a_commit(plan.stages[0], reused=True), job="relay-mini-1")
    committed = ChainStatus(phase="Succeeded", stages=[entry])
    failed = a_status("Failed", phase="Failed", failure_class=FailureClass.OUT_OF_MEMORY, attempt=4)
    metrics.changed(RELAY, a_status(attempt=1), a_status(attempt=3))
    metrics.changed(RELAY, a_status(attempt=3), failed)
    metrics.changed(RELAY, failed, failed)
    metrics.changed(RELAY, failed, committed)
    metrics.changed(RELAY, committed, committed)
    assert samples(metrics, "distillchain_stages_committed_total") == {("ml", "true"): 1}
    assert samples(metrics, "distillchain_stages_failed_total") == {("ml", "OutOfMemory"): 1}
    assert samples(metrics, "distillchain_stage_pods_replaced_total") == {("ml",): 3}


async def test_reconciles_are_counted_by_outcome():
    metrics = Metrics()
    ends: list[Exception | None] = [None, ApiError(409, "conflict"), ApiError(500, "down"), ValueError("ours")]

    async def reconcile(key: ChainKey) -> float | None:
        if end := ends.pop(0):
            raise end
        return 7.0

    measured = metrics.timed(reconcile)
    assert await measured(RELAY) == 7.0
    for _ in range(3):
        with pytest.raises((ApiError, ValueError)):
            await measured(RELAY)
    assert samples(metrics, "distillchain_reconciles_total") == {("done",): 1, ("conflict",): 1, ("error",): 2}
    assert samples(metrics, "distillchain_reconcile_duration_seconds_count") == {(): 4}


async def test_metrics_are_served_at_their_path_only():
    metrics, (port,) = Metrics(), free_ports(1)
    metrics.answered("GET", 200)
    async with serve(port, metrics_page(metrics)), aiohttp.ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.status == 200
            assert 'distillchain_api_requests_total{code="200",method="GET"} 1.0' in await answer.text()
        async with client.get(f"http://127.0.0.1:{port}/") as answer:
            assert answer.status == 404


async def test_the_operator_is_alive_at_once_and_ready_later():
    ready, (port,) = [False], free_ports(1)
    async with serve(port, probes(lambda: ready[0])), aiohttp.ClientSession() as client:

        async def status_of(path: str) -> int:
            async with client.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status

        assert (await status_of("/healthz"), await status_of("/readyz")) == (200, 503)
        ready[0] = True
        assert await status_of("/readyz") == 200


def test_the_counters_of_a_namespace_start_at_zero():
    """`increase` in Prometheus does not count the first value that it sees."""
    metrics = Metrics()
    metrics.reconciled(RELAY, a_status())
    assert samples(metrics, "distillchain_stage_pods_replaced_total") == {("ml",): 0}
    assert samples(metrics, "distillchain_stages_committed_total") == {("ml", "true"): 0, ("ml", "false"): 0}
    assert samples(metrics, "distillchain_stages_failed_total") == {("ml", str(each)): 0 for each in FailureClass}


def test_the_last_resync_counts_from_the_moment_when_the_operator_became_the_leader():
    clock = Clock()
    metrics = Metrics(clock=clock)
    assert samples(metrics, "distillchain_leader") == {(): 0}
    clock.now = 5000
    metrics.leads()
    assert samples(metrics, "distillchain_leader") == {(): 1}
    assert samples(metrics, "distillchain_last_resync_timestamp_seconds") == {(): 5000}


def test_counters_of_a_namespace_without_chains_are_removed_at_the_second_resync():
    metrics = Metrics()
    other = ChainKey("deleted", "relay")
    metrics.reconciled(RELAY, a_status())
    metrics.reconciled(other, a_status())
    metrics.changed(other, a_status(), a_status("Failed", phase="Failed", failure_class=FailureClass.OUT_OF_MEMORY))
    metrics.resynced([RELAY])

    def namespaces(name: str) -> set[str]:
        return {labels[0] for labels in samples(metrics, name)}

    names = (
        "distillchain_stages_committed_total",
        "distillchain_stages_failed_total",
        "distillchain_stage_pods_replaced_total",
    )
    # Prometheus may not have read the last increase before.
    assert all(namespaces(name) == {"ml", "deleted"} for name in names)
    for _ in range(2):
        metrics.resynced([RELAY])
        assert all(namespaces(name) == {"ml"} for name in names)
    metrics.reconciled(other, a_status())
    assert all(namespaces(name) == {"ml", "deleted"} for name in names)
