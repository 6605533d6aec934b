"""Metrics of stages and their pods: the time between stages, GPU time, and pods that ended without a result.

All are summed over the chains of a namespace, or over all of them, so their number does not grow with the chains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.jobs.observed import Observed, ObservedPod
from distillchain_operator.jobs.policy import diagnose_pod

# Kubernetes writes times of pods in whole seconds. From 30 s on, a pod waits for quota, a node or an image.
GAP_SECONDS = (1, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 14400)


@dataclass(frozen=True)
class PodsNow:
    """The pods of one chain, as far as metrics need them.

    Attributes:
        running: creation times of the pods whose trainer runs, by stage.
        gpus: how many GPUs the pods of these trainers have.
        ended: why pods ended that did not succeed, by UID.
        latest: when the newest pod was created or the trainer of the last one ended, by stage.
    """

    running: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0
    ended: Mapping[str, FailureClass] = field(default_factory=dict)
    latest: Mapping[str, str] = field(default_factory=dict)


def pods_now(observed: Observed) -> PodsNow:
    """What metrics need of the observed pods of a chain."""
    running = [pod for pod in observed.pods if pod.running]
    # Times of Kubernetes are RFC 3339 in UTC with whole seconds, so they compare as text.
    moments = [(max(pod.created_at, pod.end.finished_at if pod.end else ""), pod) for pod in observed.pods]
    return PodsNow(
        running={pod.stage: pod.created_at for pod in running if pod.is_leader and not pod.deleting},
        # Not by the spec: the pod is older than an edit, and an export beside the chain needs no GPU.
        gpus=sum(pod.gpus for pod in running),
        ended={pod.uid: _class_of(pod) for pod in observed.pods if pod.phase == "Failed"},
        latest={pod.stage: moment for moment, pod in sorted(moments, key=lambda found: found[0]) if pod.is_leader},
    )


def _class_of(pod: ObservedPod) -> FailureClass:
    return FailureClass.INTERRUPTED if pod.disrupted else diagnose_pod(pod).failure_class


@dataclass(slots=True)
class _Gpus:
    """GPUs of one chain, counted up to `until`."""

    count: int
    until: float


class StageMetrics(Collector):
    """The metrics of this module, in the registry of an operator."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._gpus: dict[ChainKey, _Gpus] = {}
        self._gpu_seconds: dict[str, float] = {}
        self._ended: dict[ChainKey, frozenset[str]] = {}
        self._current: dict[ChainKey, str] = {}
        self._waits_since: dict[ChainKey, float] = {}  # end of the stage before, until the next one has a pod
        self._gap = Histogram(
            "distillchain_stage_gap_seconds",
            "Time from the end of a stage to the creation of the pod that trains the next stage of the chain. Stages "
            "found in the store, and stages after a failure or a suspension, are left out.",
            buckets=GAP_SECONDS,
            registry=registry,
        )
        self._pods_ended = Counter(
            "distillchain_stage_pods_failed",
            "Pods of stages that ended without a result, by failure class; Interrupted: evicted, preempted or stopped. "
            "Most are retried: distillchain_stages_failed_total counts the stages that gave up.",
            ["namespace", "failure_class"],
            registry=registry,
        )
        registry.register(self)

    def saw(self, key: ChainKey, status: ChainStatus, pods: PodsNow | None) -> None:
        """Updates the metrics after a reconcile of a chain.

        Args:
            pods: None: they were not read, because the chain is finished.
        """
        self._start_namespace(key.namespace)
        self._count_gpus(key, pods.gpus if pods else 0)
        if pods is not None:
            self._count_ended(key, pods.ended)
        self._measure_gap(key, status, pods or PodsNow())

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._count_gpus(key, 0)
        self._ended.pop(key, None)
        self._stop_waiting(key)

    def forget_namespace(self, namespace: str) -> None:
        """Removes the counters of a namespace."""
        self._gpu_seconds.pop(namespace, None)
        for failure_class in FailureClass:
            remove_series(self._pods_ended, namespace, str(failure_class))

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """GPUs and GPU time of each namespace, up to this moment."""
        now = self._clock()
        counts, seconds = dict.fromkeys(self._gpu_seconds, 0), dict(self._gpu_seconds)
        for key, gpus in list(self._gpus.items()):
            counts[key.namespace] = counts.get(key.namespace, 0) + gpus.count
            seconds[key.namespace] = seconds.get(key.namespace, 0.0) + _used(gpus, now)
        in_use = GaugeMetricFamily(
            "distillchain_gpus", "GPUs that the pods of running trainers ask for.", labels=["namespace"]
        )
        used = CounterMetricFamily(
            "distillchain_gpu_seconds",
            "GPUs that pods ask for, times the seconds for which their trainers ran; divide by 3600 for GPU-hours.",
            labels=["namespace"],
        )
        for namespace in sorted(counts):
            in_use.add_metric([namespace], counts[namespace])
            used.add_metric([namespace], seconds[namespace])
        yield in_use
        yield used

    def _start_namespace(self, namespace: str) -> None:
        """Every counter starts at 0, because `increase` does not count the first value that it sees."""
        if namespace in self._gpu_seconds:
            return
        self._gpu_seconds[namespace] = 0.0
        for failure_class in FailureClass:
            self._pods_ended.labels(namespace, failure_class)

    def _count_gpus(self, key: ChainKey, gpus: int) -> None:
        now = self._clock()
        if (before := self._gpus.pop(key, None)) is not None:
            self._gpu_seconds[key.namespace] = self._gpu_seconds.get(key.namespace, 0.0) + _used(before, now)
        if gpus:
            self._gpus[key] = _Gpus(gpus, now)

    def _count_ended(self, key: ChainKey, ended: Mapping[str, FailureClass]) -> None:
        # Pods that had ended before the operator started were counted by the operator before.
        known = self._ended.get(key, frozenset(ended))
        for uid in ended.keys() - known:
            self._pods_ended.labels(key.namespace, ended[uid]).inc()
        self._ended[key] = frozenset(ended)

    def _measure_gap(self, key: ChainKey, status: ChainStatus, pods: PodsNow) -> None:
        place = next((place for place, entry in enumerate(status.stages) if entry.phase != "Committed"), None)
        if place is None or status.phase not in ("Pending", "Running"):
            self._stop_waiting(key)
            return
        current, known = status.stages[place], self._current.get(key)
        self._current[key] = current.name
        if known != current.name:
            self._waits_since.pop(key, None)
            before = status.stages[place - 1] if place else None
            if before and before.name == known and before.finished_at and not before.reused:
                self._waits_since[key] = _seconds(before.finished_at)
        if current.name in pods.running and (since := self._waits_since.pop(key, None)) is not None:
            # The clocks of two nodes may differ.
            self._gap.observe(max(_seconds(pods.running[current.name]) - since, 0.0))

    def _stop_waiting(self, key: ChainKey) -> None:
        self._current.pop(key, None)
        self._waits_since.pop(key, None)


def remove_series(counter: Counter, *labels: str) -> None:
    """Removes one series of a counter, if it has it."""
    with contextlib.suppress(KeyError):
        counter.remove(*labels)


def _used(gpus: _Gpus, now: float) -> float:
    return gpus.count * max(now - gpus.until, 0.0)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
