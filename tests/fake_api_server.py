"""Replaces the API server where the real one cannot be made to show a fault: refusals, progress and logs."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from chain_builders import CHAIN_UID, a_document
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.children import Children, Listed
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller.controller import Controller, go_on
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.settings import Settings
from distillchain_operator.status.transitions import ChainEvent

KEY = ChainKey("ml", "relay")


class FakeApiServer:
    """An API server that holds one chain and refuses dry runs with `refusal`."""

    both = Cluster.both

    def __init__(self) -> None:
        self.chain = a_document()
        self.chain["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": 1, "resourceVersion": "1"}
        self.jobs: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.log_reads = 0
        self.refusal: ApiError | None = None
        self.part_refusal: ApiError | None = None
        self.change_refusal: ApiError | None = None
        self.status_refusal: ApiError | None = None
        self.refused_changes = 0
        self.parts: list[dict[str, Any]] = []
        self.dry_runs = 0
        self.statuses: list[dict[str, Any]] = []
        self.events: list[str] = []

    async def get_chain(self, namespace: str, name: str) -> dict[str, Any]:
        return copy.deepcopy(self.chain)

    async def list_jobs(self, namespace: str, chain: str) -> Listed:
        return listed(self.jobs)

    async def list_pods(self, namespace: str, chain: str) -> Listed:
        return listed(self.pods)

    async def get_job(self, namespace: str, name: str) -> dict[str, Any] | None:
        return next((job for job in self.jobs if job["metadata"]["name"] == name), None)

    async def dry_run_pod(self, pod: dict[str, Any]) -> None:
        self.dry_runs += 1
        if self.refusal is not None:
            raise self.refusal

    async def create_job(self, job: dict[str, Any]) -> None:
        given = {"creationTimestamp": "2026-01-01T12:00:00Z", "uid": "uid-of-the-job"}
        self.jobs.append(job | {"metadata": job["metadata"] | given})

    async def create_part(self, manifest: dict[str, Any], *, dry_run: bool = False) -> None:
        if self.part_refusal is not None:
            raise self.part_refusal
        if not dry_run:
            self.parts.append(manifest)

    async def list_services(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        return [part for part in self.parts if part["kind"] == "Service"]

    async def list_network_policies(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        return [part for part in self.parts if part["kind"] == "NetworkPolicy"]

    async def patch_status(
        self, namespace: str, name: str, *, resource_version: str, status: dict[str, Any]
    ) -> dict[str, Any]:
        # As a CRD: what it holds already is no longer judged.
        if self.status_refusal is not None and status["stages"] != self.chain.get("status", {}).get("stages", []):
            raise self.status_refusal
        self.chain["status"] = {key: value for key, value in status.items() if value is not None}
        self.statuses.append(status)
        version = int(self.chain["metadata"]["resourceVersion"]) + 1
        self.chain["metadata"]["resourceVersion"] = str(version)
        return copy.deepcopy(self.chain)

    async def set_suspend(self, namespace: str, name: str, *, uid: str, suspend: bool) -> None:
        self._refuse_change()
        for job in self.jobs:
            job["spec"]["suspend"] = suspend

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        self._refuse_change()
        self.jobs = [job for job in self.jobs if job["metadata"]["uid"] != uid]

    async def label_job(self, namespace: str, name: str, *, uid: str, labels: dict[str, str]) -> None:
        self._refuse_change()
        for job in self.jobs:
            job["metadata"]["labels"] = labels

    def _refuse_change(self) -> None:
        if self.change_refusal is not None:
            self.refused_changes += 1
            raise self.change_refusal

    async def annotate_job(self, namespace: str, name: str, *, uid: str, annotations: Mapping[str, str | None]) -> None:
        self._refuse_change()
        for job in self.jobs:
            merged = {**job["metadata"].get("annotations", {}), **annotations}
            job["metadata"]["annotations"] = {key: value for key, value in merged.items() if value is not None}

    async def set_ttl(self, namespace: str, name: str, *, uid: str, seconds: int) -> None:
        self._refuse_change()
        for job in self.jobs:
            job["spec"] |= {"ttlSecondsAfterFinished": seconds} if job["metadata"]["uid"] == uid else {}

    async def create_event(self, chain: dict[str, Any], event: ChainEvent, *, at: datetime) -> None:
        self.events.append(event.reason)

    async def log_tail(self, namespace: str, pod: str) -> list[str]:
        self.log_reads += 1
        return self.log


def listed(documents: list[dict[str, Any]]) -> Listed:
    """The answer to a list; builders leave the versions out."""
    for document in documents:
        document["metadata"].setdefault("resourceVersion", "1")
    return Listed(1, documents)


class FakeClock:
    """A monotonic clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_controller(
    server: FakeApiServer,
    clock: FakeClock | None = None,
    *,
    namespaces: tuple[str, ...] = (),
    network_policies: bool = True,
    progress_s: float = 60,
    children: Children | None = None,
    trainer_image: str = "",
    metrics: Metrics | None = None,
    now: Callable[[], datetime] = lambda: datetime(2026, 1, 1, 12, tzinfo=UTC),
    give_way: Callable[[ChainKey], Awaitable[None]] = go_on,
) -> Controller:
    return Controller(
        cast("Cluster", server),
        Settings(
            progress_s=progress_s,
            namespaces=namespaces,
            network_policies=network_policies,
            trainer_image=trainer_image,
        ),
        clock=now,
        monotonic=clock or FakeClock(),
        children=children,
        metrics=metrics,
        give_way=give_way,
    )
