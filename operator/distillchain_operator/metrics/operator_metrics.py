"""The operator's metrics for Prometheus, in a registry of their own.

The number of series is bounded: labels are namespaces, phases, failure classes and HTTP codes. A chain is named only
while its stage is pending or running, or while it is stalled, and at most NAMED_CHAINS of them, the oldest first.
"""

from __future__ import annotations

import collections
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainPhase, ChainStatus, StageStatus
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.metrics.stage_metrics import PodsNow, StageMetrics, remove_series

NAMED_CHAINS = 500  # series of one metric; `kubectl get` lists the others
# A reconcile makes about five requests: 20 ms each in the usual case, 30 s (the client's limit) in the worst.
RECONCILE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

StageState = Literal["pending", "running", "waiting"]
Waits = Literal["WaitingForTurn", "WaitingForPeer"]
Outcome = Literal["done", "conflict", "error"]
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A chain at its last reconcile; small, because finished chains have one too."""

    phase: ChainPhase
    stalled_reason: str = ""
    stage: str = ""
    state: StageState = "pending"
    waits: Waits | None = None
    since: float = 0.0
    loss: float | None = None
    metric: float | None = None


class Metrics:
    """All metrics of one operator.

    Attributes:
        registry: what GET /metrics shows.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.registry = registry = CollectorRegistry()
        self._clock = clock
        self._seen: dict[ChainKey, _Seen] = {}
        self._named: set[str] = set()  # namespaces that have counters
        self._empty: set[str] = set()  # those that had no chain at the last resync
        self._reconciles = Counter(
            "distillchain_reconciles", "Reconciles of chains by outcome.", ["outcome"], registry=registry
        )
        self._duration = Histogram(
            "distillchain_reconcile_duration_seconds",
            "Duration of the reconcile of one chain, including the time that it waited for urgent chains.",
            buckets=RECONCILE_SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge(
            "distillchain_queue_depth", "Chains that wait for a reconcile to start or to continue.", registry=registry
        )
        self.queue_failing = Gauge(
            "distillchain_queue_failing", "Chains whose last reconcile failed and is retried.", registry=registry
        )
        self._requests = Counter(
            "distillchain_api_requests",
            "Requests to the Kubernetes API server by HTTP code; 0: no answer.",
            ["method", "code"],
            registry=registry,
        )
        self._jobs = Counter(
            "distillchain_jobs", "Jobs created, and Jobs that the API server refused.", ["outcome"], registry=registry
        )
        self._committed = Counter(
            "distillchain_stages_committed",
            "Stages committed; reused: found in the store, not trained.",
            ["namespace", "reused"],
            registry=registry,
        )
        self._failed = Counter(
            "distillchain_stages_failed",
            "Stages that failed, by failure class.",
            ["namespace", "failure_class"],
            registry=registry,
        )
        self._replaced = Counter(
            "distillchain_stage_pods_replaced",
            "Pods of stages that another pod replaced, after an eviction, interruption, crash or suspension.",
            ["namespace"],
            registry=registry,
        )
        self._leader = Gauge(
            "distillchain_leader", "1 while this operator leads, 0 while it is on standby.", registry=registry
        )
        self._resynced = Gauge(
            "distillchain_last_resync_timestamp_seconds",
            "Time when the operator last looked at all chains, with working watches; before the first look, the time "
            "when it became the leader.",
            registry=registry,
        )
        # Not 0, which an alert on old resyncs would read as 1970.
        self._resynced.set(clock())
        # Series exist from the start, because `increase` does not count the first value of a new one.
        for outcome in get_args(Outcome):
            self._reconciles.labels(outcome)
        for outcome in ("created", "refused"):
            self._jobs.labels(outcome)
        build = Gauge(
            "distillchain_build_info",
            "Always 1; the labels are the versions of operator and Python.",
            ["version", "python"],
            registry=registry,
        )
        build.labels(version("distillchain"), platform.python_version()).set(1)
        registry.register(_OfChains(self._seen))
        self._stages = StageMetrics(registry, clock=clock)
        # Only the library's global registry has it by default.
        ProcessCollector(registry=registry)

    def timed(self, reconcile: Callable[[Key], Awaitable[float | None]]) -> Callable[[Key], Awaitable[float | None]]:
        """`reconcile`, counted and timed."""

        async def measured(key: Key) -> float | None:
            started = time.monotonic()
            outcome: Outcome = "error"
            try:
                due_s = await reconcile(key)
                outcome = "done"
            except ApiError as error:
                # After a conflict, another writer was faster; the chain is reconciled again.
                outcome = "conflict" if error.status == 409 else "error"
                raise
            else:
                return due_s
            finally:
                self._reconciles.labels(outcome).inc()
                self._duration.observe(time.monotonic() - started)

        return measured

    def answered(self, method: str, code: int) -> None:
        """Counts a request to the API server; code 0: there was no answer."""
        self._requests.labels(method, str(code)).inc()

    def job_created(self) -> None:
        """Counts a created Job."""
        self._jobs.labels("created").inc()

    def job_refused(self) -> None:
        """Counts a Job that the API server refused."""
        self._jobs.labels("refused").inc()

    def reconciled(
        self, key: ChainKey, status: ChainStatus, *, runs_since: str | None = None, pods: PodsNow | None = None
    ) -> None:
        """Updates what is known of a chain.

        Args:
            runs_since: creation time of the pod whose trainer runs; None: none runs.
            pods: None: they were not read, because the chain is finished.
        """
        self._stages.saw(key, status, pods)
        # Every counter starts at 0, because `increase` does not count the first value that it sees.
        self._named.add(key.namespace)
        self._replaced.labels(key.namespace)
        for reused in ("true", "false"):
            self._committed.labels(key.namespace, reused)
        for failure_class in FailureClass:
            self._failed.labels(key.namespace, failure_class)
        current = next((entry for entry in status.stages if entry.phase != "Committed"), None)
        if current is None or status.phase not in ("Pending", "Running"):
            self._seen[key] = _Seen(status.phase, sys.intern(_stalled_reason(status)))
            return
        waits = next((name for name in get_args(Waits) if name == current.admission), None)
        # A chain that waits for other chains is no reason for an alert.
        state: StageState = "running" if runs_since else "waiting" if waits else "pending"
        since = _seconds(runs_since) if runs_since else self._in_state_since(key, current, state, pods)
        reason = sys.intern(_stalled_reason(status))
        loss = current.progress.loss if runs_since and current.progress else None
        metric = _number(status.metric)
        self._seen[key] = _Seen(status.phase, reason, current.name, state, waits, since, _number(loss), metric)

    def _in_state_since(self, key: ChainKey, current: StageStatus, state: StageState, pods: PodsNow | None) -> float:
        before = self._seen.get(key)
        if before is None and current.started_at:
            # Before the operator was restarted, the Job was created, and its pods may have run for hours.
            latest = pods.latest.get(current.name, "") if pods else ""
            return _seconds(max(current.started_at, latest))
        if before is not None and (before.stage, before.state) == (current.name, state):
            return before.since
        return self._clock()

    def leads(self) -> None:
        """This operator became the leader."""
        self._leader.set(1)
        self._resynced.set(self._clock())

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._seen.pop(key, None)
        self._stages.forget(key)

    def resynced(self, keys: Iterable[ChainKey], *, is_complete: bool = True) -> None:
        """These are all chains that can be read; others that are known were deleted.

        Args:
            is_complete: all watches of them work.
        """
        # The difference is a new set, so `forget` may change the dictionary meanwhile.
        for gone in self._seen.keys() - set(keys):
            self.forget(gone)
        self._forget_namespaces({key.namespace for key in self._seen})
        if is_complete:
            self._resynced.set(self._clock())

    def _forget_namespaces(self, current: set[str]) -> None:
        """Removes the counters of namespaces that have had no chain since the resync before; most were deleted."""
        for namespace in self._empty - current:
            for reused in ("true", "false"):
                remove_series(self._committed, namespace, reused)
            for failure_class in FailureClass:
                remove_series(self._failed, namespace, failure_class)
            remove_series(self._replaced, namespace)
            self._stages.forget_namespace(namespace)
        # Not at once: Prometheus must have read the last increase.
        self._empty = self._named - current
        self._named &= current | self._empty

    def changed(self, key: ChainKey, old: ChainStatus, new: ChainStatus) -> None:
        """Counts what changed when the status of a chain was written."""
        for entry in new.entries:
            before = old.stage_named(entry.name)
            # Statuses of two different Jobs say nothing about replaced pods: attempts count from 1 in each.
            same = before is not None and (before.digest, before.job) == (entry.digest, entry.job)
            # The first pod of a Job replaces none.
            if before is not None and same and entry.attempt > max(before.attempt, 1):
                self._replaced.labels(key.namespace).inc(entry.attempt - max(before.attempt, 1))
            was_committed = before is not None and before.digest == entry.digest and before.phase == "Committed"
            if entry.phase == "Committed" and not was_committed:
                self._committed.labels(key.namespace, str(bool(entry.reused)).lower()).inc()
            if entry.phase == "Failed" and not (before is not None and same and before.phase == "Failed"):
                self._failed.labels(key.namespace, str(entry.failure_class or FailureClass.CRASHED)).inc()


class _OfChains(Collector):
    """Metrics computed from the chains at every scrape, so that a deleted chain leaves no series."""

    def __init__(self, seen: dict[ChainKey, _Seen]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges of all chains."""
        phases = collections.Counter((key.namespace, seen.phase) for key, seen in self._seen.items())
        chains = GaugeMetricFamily("distillchain_chains", "Chains by phase.", labels=["namespace", "phase"])
        for namespace in sorted({key.namespace for key in self._seen}):
            for phase in get_args(ChainPhase):
                chains.add_metric([namespace, phase], phases[namespace, phase])
        yield chains
        yield self._waiting()
        since = GaugeMetricFamily(
            "distillchain_stage_since_timestamp_seconds",
            "Since when the current stage of an unfinished chain has been pending, running, or waiting for others.",
            labels=["namespace", "chain", "stage", "state"],
        )
        # By time and key only: `_Seen` has no order.
        waiting = sorted(
            ((seen.since, key, seen) for key, seen in self._seen.items() if seen.stage), key=lambda row: row[:2]
        )
        for moment, key, seen in waiting[:NAMED_CHAINS]:
            since.add_metric([*key, seen.stage, seen.state], moment)
        yield since
        yield from _values_of_named(waiting[:NAMED_CHAINS])
        stalled = GaugeMetricFamily(
            "distillchain_chain_stalled",
            "1 for a chain that needs the user, with the reason of its condition Stalled.",
            labels=["namespace", "chain", "reason"],
        )
        stuck = sorted((key, seen.stalled_reason) for key, seen in self._seen.items() if seen.stalled_reason)
        for key, reason in stuck[:NAMED_CHAINS]:
            stalled.add_metric([*key, reason], 1)
        yield stalled

    def _waiting(self) -> GaugeMetricFamily:
        counts = collections.Counter((key.namespace, seen.waits) for key, seen in self._seen.items())
        waiting = GaugeMetricFamily(
            "distillchain_chains_waiting",
            "Chains that wait for others: for their turn (maxRunningChains), or for one that runs the same stage.",
            labels=["namespace", "reason"],
        )
        for namespace in sorted({key.namespace for key in self._seen}):
            for reason in get_args(Waits):
                waiting.add_metric([namespace, reason], counts[namespace, reason])
        return waiting


def _values_of_named(rows: Iterable[tuple[float, ChainKey, _Seen]]) -> Iterator[GaugeMetricFamily]:
    """Loss and metric of the unfinished chains that are named."""
    loss = GaugeMetricFamily(
        "distillchain_stage_loss",
        "Training loss of a running stage, from the last progress line of its trainer.",
        labels=["namespace", "chain", "stage"],
    )
    metric = GaugeMetricFamily(
        "distillchain_chain_metric",
        "`spec.task.metric` on validation of the last committed student of an unfinished chain.",
        labels=["namespace", "chain"],
    )
    for _, key, seen in rows:
        if seen.loss is not None:
            loss.add_metric([*key, seen.stage], seen.loss)
        if seen.metric is not None:
            metric.add_metric([*key], seen.metric)
    yield loss
    yield metric


def _stalled_reason(status: ChainStatus) -> str:
    return next((c.reason for c in status.conditions if c.type == "Stalled" and c.status == "True"), "")


def _number(text: str | None) -> float | None:
    """A number of status, which has numbers as text; None if there is none."""
    try:
        return None if text is None else float(text)
    except ValueError:  # somebody else wrote the status
        return None


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
