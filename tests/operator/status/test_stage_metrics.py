"""Metrics of stages and their pods, as a scrape shows them."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import IMAGE, a_job, a_plan
from chain_builders import a_pod as a_pod_document
from deciding import committed_status, decide
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Failed
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.actions import CreateJob
from distillchain_operator.jobs.observed import Observed, ObservedPod, TrainerEnd
from distillchain_operator.jobs.parsing import parse_pod
from distillchain_operator.metrics.operator_metrics import NAMED_CHAINS, Metrics
from distillchain_operator.metrics.stage_metrics import PodsNow, pods_now
from fake_api_server import KEY, FakeApiServer, a_controller

RELAY = ChainKey("ml", "relay")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def a_status(*stages: dict[str, Any], phase: str = "Running", **fields: Any) -> ChainStatus:
    entries = [
        {"name": name, "phase": "Pending", "digest": "d", **stage} for name, stage in zip("abc", stages, strict=False)
    ]
    return ChainStatus.parse({"phase": phase, "stages": entries, **fields})


ENDED = {"phase": "Committed", "finishedAt": "2026-01-01T12:00:00Z"}


def observe_gap(metrics: Metrics, *looks: tuple[ChainStatus, PodsNow]) -> tuple[float | None, float | None]:
    """How many gaps were measured after these reconciles, and their sum."""
    for status, pods in looks:
        metrics.reconciled(RELAY, status, pods=pods)
    return tuple(sample(metrics, f"distillchain_stage_gap_seconds_{part}") for part in ("count", "sum"))


TRAINS_A = PodsNow(running={"a": "2026-01-01T11:00:00Z"})
TRAINS_B = PodsNow(running={"b": "2026-01-01T12:00:04Z"})


def test_the_time_between_stages_is_measured_once_when_the_next_pod_runs():
    first = (a_status({"phase": "Running"}, {}), TRAINS_A)
    between = (a_status(ENDED, {}), PodsNow())
    second = (a_status(ENDED, {"phase": "Running"}), TRAINS_B)
    replaced = (second[0], PodsNow(running={"b": "2026-01-01T13:00:00Z"}))
    assert observe_gap(Metrics(), first, between, between, second, replaced) == (1, 4)


@pytest.mark.parametrize(
    "between",
    [
        pytest.param([], id="the operator was started in between"),
        pytest.param(
            [a_status({"phase": "Running"}, {}), a_status({**ENDED, "reused": True}, {})], id="found in the store"
        ),
        pytest.param(
            [a_status({"phase": "Running"}, {}), a_status(ENDED, {}, phase="Suspended"), a_status(ENDED, {})],
            id="suspended",
        ),
    ],
)
def test_a_time_that_is_not_the_operators_is_not_measured(between: list[ChainStatus]):
    looks = [(status, PodsNow()) for status in between]
    second = (a_status(ENDED, {"phase": "Running"}), TRAINS_B)
    assert observe_gap(Metrics(), *looks, second) == (0, 0)


def test_gpu_time_is_the_gpus_of_running_pods_times_their_time():
    clock = Clock()
    metrics = Metrics(clock=clock)

    def used() -> tuple[float | None, float | None]:
        return (
            sample(metrics, "distillchain_gpus", namespace="ml"),
            sample(metrics, "distillchain_gpu_seconds_total", namespace="ml"),
        )

    running = a_status({"phase": "Running"})
    metrics.reconciled(RELAY, running, pods=PodsNow(gpus=4))
    clock.now += 10
    assert used() == (4, 40)  # up to the moment of the scrape
    metrics.reconciled(RELAY, running, pods=PodsNow(gpus=8))
    clock.now += 10
    metrics.reconciled(RELAY, a_status(ENDED, phase="Succeeded"), pods=PodsNow())
    clock.now += 10
    assert used() == (0, 120)
    metrics.reconciled(RELAY, running, pods=PodsNow(gpus=1))
    clock.now += 10
    metrics.forget(RELAY)
    clock.now += 10
    assert used() == (0, 130)
    for _ in range(2):  # the first one keeps the counters of a namespace without chains
        metrics.resynced([])
    assert used() == (None, None)


def a_pod(uid: str, **fields: Any) -> ObservedPod:
    return ObservedPod(name=uid, uid=uid, job="j", created_at="2026-01-01T12:00:00Z", stage="mini", **fields)


def test_what_metrics_need_is_read_from_pods():
    answer = Failed(stage="mini", digest="d", failure_class=FailureClass.DISK_FULL, message="no space")
    pods = (
        a_pod("node-0", phase="Running", running=True, gpus=2),
        a_pod("node-1", phase="Running", running=True, index=1, gpus=2),
        a_pod("evicted", phase="Failed", disrupted="EvictionByEvictionAPI"),
        a_pod("full", phase="Failed", end=TrainerEnd(1, answer=answer)),
        a_pod("killed", phase="Failed", end=TrainerEnd(137, reason="OOMKilled", finished_at="2026-01-01T14:00:00Z")),
        a_pod("refused", phase="Failed", rejected="OutOfcpu"),
        a_pod("done", phase="Succeeded", end=TrainerEnd(0), gpus=2),
    )
    assert pods_now(Observed(pods=pods)) == PodsNow(
        running={"mini": "2026-01-01T12:00:00Z"},
        gpus=4,
        ended={
            "evicted": FailureClass.INTERRUPTED,
            "full": FailureClass.DISK_FULL,
            "killed": FailureClass.OUT_OF_MEMORY,
            "refused": FailureClass.POD_REJECTED,
        },
        latest={"mini": "2026-01-01T14:00:00Z"},
    )


FOUR_GPUS = {"image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": "4"}}}


def test_gpus_are_those_of_the_pod_and_an_export_beside_the_chain_has_none():
    plan = a_plan(stages=["mini"], template=FOUR_GPUS)
    with_export = a_plan(stages=["mini"], template={**FOUR_GPUS, "export": {"onnx": {}}}, generation=2)
    actions = decide(with_export, previous=committed_status(plan, "mini")).actions
    (export,) = (action.job for action in actions if isinstance(action, CreateJob))
    export["metadata"]["uid"] = "export"
    pods = [parse_pod(a_pod_document(job)) for job in (a_job(plan, "mini"), export)]
    assert [pods_now(Observed(pods=(pod,))).gpus for pod in pods] == [4, 0]


async def test_a_trainer_that_continues_after_an_invalid_edit_still_counts_its_gpus():
    server, metrics = FakeApiServer(), Metrics()
    server.jobs = [a_job(a_plan(template=FOUR_GPUS), "mini", active=1)]
    server.pods = [a_pod_document(server.jobs[0])]
    server.chain["spec"]["task"]["labels"] = ["one"]
    await a_controller(server, metrics=metrics).reconcile(KEY)
    assert server.chain["status"]["phase"] == "Failed"
    assert sample(metrics, "distillchain_gpus", namespace="ml") == 4


def test_failed_pods_are_counted_by_class_and_not_again_by_an_operator_that_starts():
    metrics, running = Metrics(), a_status({"phase": "Running"})
    old = {"1": FailureClass.CRASHED}
    metrics.reconciled(RELAY, running, pods=PodsNow(ended=old))
    for _ in range(2):
        metrics.reconciled(RELAY, running, pods=PodsNow(ended={**old, "2": FailureClass.INTERRUPTED}))
    metrics.reconciled(RELAY, running)  # its pods were not read
    metrics.reconciled(RELAY, running, pods=PodsNow(ended={"2": FailureClass.INTERRUPTED}))

    def failed(failure_class: FailureClass) -> float | None:
        name = "distillchain_stage_pods_failed_total"
        return sample(metrics, name, namespace="ml", failure_class=str(failure_class))

    assert (failed(FailureClass.INTERRUPTED), failed(FailureClass.CRASHED)) == (1, 0)


def test_loss_and_metric_are_those_of_named_chains_that_run():
    clock = Clock()
    metrics = Metrics(clock=clock)
    progress = {"phase": "training", "step": 1, "of": 9, "loss": "0.5000"}
    running = a_status(ENDED, {"phase": "Running", "progress": progress}, metric="0.9100")
    for number in range(NAMED_CHAINS + 1):
        clock.now += 1
        metrics.reconciled(ChainKey("ml", f"c{number}"), running, runs_since="1970-01-01T00:00:00Z")
    metrics.reconciled(RELAY, running)  # its pod waits, so the loss is that of an earlier pod
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    assert sum(sample.name == "distillchain_stage_loss" for sample in samples) == NAMED_CHAINS
    assert sample(metrics, "distillchain_stage_loss", namespace="ml", chain="c0", stage="b") == 0.5
    assert sample(metrics, "distillchain_chain_metric", namespace="ml", chain="c0") == 0.91
    metrics.forget(ChainKey("ml", "c1"))
    assert sample(metrics, "distillchain_stage_loss", namespace="ml", chain="c1", stage="b") is None


def test_a_status_that_somebody_else_wrote_has_no_number():
    metrics = Metrics()
    metrics.reconciled(RELAY, a_status({"phase": "Running"}, metric="good"))
    assert sample(metrics, "distillchain_chain_metric", namespace="ml", chain="relay") is None
