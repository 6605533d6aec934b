"""The order in which one look is done, where the real parts cannot be made to show it: refusals and logs.

`Remembering` stands in for the API server; the real one is in test_operator_on_apiserver.py.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from chain_builders import CHAIN_UID, a_document, a_job, a_plan, a_pod
from distillchain_api.wire.answer import Progress
from distillchain_operator.cluster import ApiError, Cluster
from distillchain_operator.controller import ChainKey, Controller
from distillchain_operator.settings import Settings
from distillchain_operator.transitions import ChainEvent

KEY = ChainKey("ml", "relay")


class Remembering:
    """An API server that keeps one chain and answers creates as it is told."""

    def __init__(self) -> None:
        self.chain = a_document()
        self.chain["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": 1, "resourceVersion": "1"}
        self.jobs: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.log_reads = 0
        self.refusal: ApiError | None = None
        self.asked = 0
        self.statuses: list[dict[str, Any]] = []
        self.events: list[str] = []

    async def get_chain(self, namespace: str, name: str) -> dict[str, Any]:
        return self.chain

    async def list_jobs(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        return self.jobs

    async def list_pods(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        return self.pods

    async def get_job(self, namespace: str, name: str) -> dict[str, Any] | None:
        return next((job for job in self.jobs if job["metadata"]["name"] == name), None)

    async def dry_run_pod(self, pod: dict[str, Any]) -> None:
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal

    async def create_job(self, job: dict[str, Any], *, dry_run: bool = False) -> None:
        if not dry_run:
            self.jobs.append(job | {"metadata": job["metadata"] | {"creationTimestamp": "2026-01-01T12:00:00Z"}})

    async def patch_status(self, namespace: str, name: str, *, resource_version: str, status: dict[str, Any]) -> None:
        self.chain["status"] = {key: value for key, value in status.items() if value is not None}
        self.statuses.append(status)

    async def set_suspend(self, namespace: str, name: str, *, uid: str, suspend: bool) -> None:
        for job in self.jobs:
            job["spec"]["suspend"] = suspend

    async def annotate_job(self, namespace: str, name: str, *, uid: str, annotations: dict[str, str]) -> None:
        for job in self.jobs:
            job["metadata"]["annotations"] = annotations

    async def create_event(self, chain: dict[str, Any], event: ChainEvent) -> None:
        self.events.append(event.reason)

    async def log_tail(self, namespace: str, pod: str) -> list[str]:
        self.log_reads += 1
        return self.log


class Watch:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_controller(server: Remembering, watch: Watch | None = None, *, namespaces: tuple[str, ...] = ()) -> Controller:
    return Controller(
        cast("Cluster", server),
        Settings(progress_s=60, namespaces=namespaces),
        clock=lambda: datetime(2026, 1, 1, 12, tzinfo=UTC),
        monotonic=watch or Watch(),
    )


async def test_an_unchanged_status_is_not_written_again():
    server = Remembering()
    controller = a_controller(server)
    for _ in range(3):
        await controller.look(KEY)
    assert len(server.jobs) == 1
    assert len(server.statuses) <= 2  # created, then seen
    assert server.events == ["StageStarted"]


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_refusal_is_said_once_and_tried_again_later(status: int):
    server = Remembering()
    server.refusal = ApiError(status, 'pods "relay-mini-" is forbidden: violates PodSecurity "restricted"')
    watch = Watch()
    controller = a_controller(server, watch)
    assert await controller.look(KEY) == 30.0
    await controller.look(KEY)
    assert server.jobs == []
    assert len(server.statuses) == 1
    assert server.chain["status"]["message"] == (
        "mini: the operator's dry run of the stage's pod was refused: "
        'pods "relay-mini-" is forbidden: violates PodSecurity "restricted"; tried again every 30 s'
    )
    assert server.events == ["StageFailed"]
    server.refusal = None
    watch.now_s = 30
    await controller.look(KEY)
    assert len(server.jobs) == 1


async def test_a_refusal_that_reads_differently_each_time_is_not_asked_for_again_before_its_time():
    server, watch = Remembering(), Watch()
    controller = a_controller(server, watch)
    for now_s in range(30):
        watch.now_s = now_s
        server.refusal = ApiError(500, f"failed calling webhook: read tcp 10.0.0.1:{40000 + now_s}: connection reset")
        assert await controller.look(KEY) == 30.0 - now_s
    assert (server.asked, len(server.statuses)) == (1, 1)
    watch.now_s = 30
    await controller.look(KEY)
    assert (server.asked, len(server.statuses)) == (2, 2)


async def test_an_edit_of_a_chain_whose_job_was_refused_is_tried_at_once():
    server = Remembering()
    server.refusal = ApiError(403, "exceeded quota: gpu")
    controller = a_controller(server)
    await controller.look(KEY)
    server.refusal = None
    server.chain["metadata"]["generation"] = 2
    await controller.look(KEY)
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    "status, sentence",
    [
        pytest.param(403, "exceeded quota: gpu, requested: 1, used: 8, limited: 8", id="a quota that is used up"),
        pytest.param(500, "failed calling webhook: connection refused", id="a webhook that is down"),
        pytest.param(409, "Operation cannot be fulfilled on resourcequotas", id="two writers of one quota"),
    ],
)
async def test_what_may_pass_by_itself_is_waited_for_and_said(status: int, sentence: str):
    server = Remembering()
    server.refusal = ApiError(status, sentence)
    watch = Watch()
    controller = a_controller(server, watch)
    assert (await controller.look(KEY) or 0) > 0
    assert server.chain["status"]["phase"] == "Pending"
    assert server.chain["status"]["message"].startswith("mini: ")
    assert f"{sentence}; tried again" in server.chain["status"]["message"]
    assert server.events == []
    server.refusal = None
    watch.now_s = 30
    await controller.look(KEY)
    assert len(server.jobs) == 1


async def test_an_api_server_that_is_away_changes_nothing_and_is_left_to_the_queue():
    server = Remembering()
    server.refusal = ApiError(0, "cannot connect")
    with pytest.raises(ApiError):
        await a_controller(server).look(KEY)
    assert (server.jobs, server.statuses) == ([], [])


async def test_a_namespace_that_is_deleted_fails_no_chain():
    server = Remembering()
    server.refusal = ApiError(403, "is being terminated", causes=frozenset({"NamespaceTerminating"}))
    await a_controller(server).look(KEY)
    assert server.chain["status"]["phase"] == "Pending"


async def test_a_chain_that_may_not_be_read_any_more_is_left_alone():
    """Its namespace is deleted, and the Role of the operator went first."""

    class Refusing(Remembering):
        async def get_chain(self, namespace: str, name: str) -> dict[str, Any]:
            raise ApiError(403, "distillationchains.distillchain.io is forbidden")

    assert await a_controller(Refusing(), namespaces=(KEY.namespace,)).look(KEY) is None
    with pytest.raises(ApiError):  # with a ClusterRole a mistake in RBAC is the only reason
        await a_controller(Refusing()).look(KEY)


async def test_progress_is_the_newest_line_and_the_log_is_not_read_at_every_look():
    server = Remembering()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    lines = [Progress(stage="mini", phase="Train", step=step, of=100, loss=0.5) for step in (1, 2)]
    server.log = [*(line.to_json() for line in lines), "talk"]
    controller = a_controller(server)
    assert await controller.look(KEY) == 60
    await controller.look(KEY)
    assert server.log_reads == 1
    assert server.chain["status"]["stages"][0]["progress"] == {"phase": "Train", "step": 2, "of": 100, "loss": "0.5000"}


async def test_a_chain_whose_pod_is_stopping_is_looked_at_when_its_node_is_to_have_told_so():
    server = Remembering()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    server.pods[0]["metadata"]["deletionTimestamp"] = "2026-01-01T11:59:00Z"
    assert await a_controller(server).look(KEY) == 120


async def test_a_spec_that_only_the_types_refuse_is_said_in_stalled_with_all_faults():
    server = Remembering()
    server.chain["spec"]["task"]["labels"] = ["one"]
    server.chain["spec"]["stages"][0]["studnet"] = {}
    await a_controller(server).look(KEY)
    stalled = next(c for c in server.chain["status"]["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert "spec.task.labels: got" in stalled["message"]
    assert "spec.stages[0].studnet: unknown field; did you mean student?" in stalled["message"]


@pytest.mark.parametrize("suspend", [False, True])
async def test_what_runs_under_a_spec_that_became_invalid_goes_on_and_is_named_unless_it_is_suspended(suspend: bool):
    server = Remembering()
    controller = a_controller(server)
    await controller.look(KEY)
    (job,) = server.jobs
    server.chain["spec"]["task"]["labels"] = ["one"]
    server.chain["spec"]["suspend"] = suspend
    await controller.look(KEY)
    name = job["metadata"]["name"]
    assert job["spec"]["suspend"] is suspend
    assert (f"Job {name} goes on; spec.suspend: true stops it" in server.chain["status"]["message"]) is not suspend


async def test_a_status_with_a_field_of_a_later_release_is_neither_written_again_nor_told_again():
    server = Remembering()
    controller = a_controller(server)
    for _ in range(2):  # created, then seen
        await controller.look(KEY)
    server.chain["status"]["budget"] = {"left": 1}
    server.chain["status"]["stages"][0]["cost"] = 3
    written, told = len(server.statuses), len(server.events)
    for _ in range(3):
        await controller.look(KEY)
    assert (len(server.statuses), len(server.events)) == (written, told)


async def test_a_status_of_another_release_is_built_anew():
    server = Remembering()
    server.chain["status"] = {"phase": "Dreaming"}
    await a_controller(server).look(KEY)
    assert server.chain["status"]["phase"] == "Running"
