"""What a chain's status says when the operator cannot do its work, and that nothing else stops for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chain_builders import a_document, a_job, a_plan, a_pod
from deciding import a_failed_job
from distillchain_api.failures import FailureClass
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches.children import Listed
from distillchain_operator.controller import controller as controller_module
from distillchain_operator.status.problems import CHANGE_REFUSED, RECONCILE_FAILED, STATUS_REFUSED
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller, listed

DENIED = 'admission webhook "freeze.example" denied the request'


def conditions(server: FakeApiServer) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in server.chain["status"]["conditions"]}


async def test_an_error_while_reconciling_is_a_condition_until_it_is_gone(monkeypatch: pytest.MonkeyPatch):
    server = FakeApiServer()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    before = server.chain["status"]

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    with monkeypatch.context() as patched:
        patched.setattr(controller_module, "reconcile", fails)
        for _ in range(3):  # as the queue tries again
            with pytest.raises(ZeroDivisionError):
                await controller.reconcile(KEY)
    assert conditions(server) | {"Stalled": ("True", RECONCILE_FAILED)} == conditions(server)
    assert conditions(server)["Reconciling"][0] == "False"
    assert server.chain["status"]["message"] == (
        "the operator cannot reconcile this chain and tries again: ZeroDivisionError: division by zero; see the log of "
        "the operator"
    )
    assert server.chain["status"]["stages"] == before["stages"]
    assert server.events.count(RECONCILE_FAILED) == 1
    assert len(server.statuses) == 2

    await controller.reconcile(KEY)
    assert conditions(server)["Stalled"][0] == "False"
    assert "cannot reconcile" not in server.chain["status"]["message"]


@pytest.mark.parametrize("status", [0, 409, 500])
async def test_an_api_server_that_is_away_or_faster_is_no_condition(status: int):
    class Failing(FakeApiServer):
        async def list_jobs(self, namespace: str, chain: str) -> Listed:
            raise ApiError(status, "try again")

    server = Failing()
    with pytest.raises(ApiError):
        await a_controller(server).reconcile(KEY)
    assert server.statuses == []


async def test_a_status_that_the_api_server_refuses_is_reported_and_tried_again_later():
    server = FakeApiServer()
    server.status_refusal = ApiError(422, "status.stages[0].progress.step: Invalid value")
    controller = a_controller(server)
    for _ in range(3):
        assert await controller.reconcile(KEY) == 30
    assert conditions(server)["Stalled"] == ("True", STATUS_REFUSED)
    assert server.chain["status"]["message"] == (
        "the API server refused the status of this chain: status.stages[0].progress.step: Invalid value"
    )
    assert (len(server.jobs), len(server.statuses), server.events) == (1, 1, [STATUS_REFUSED])
    server.status_refusal = None
    await controller.reconcile(KEY)
    assert conditions(server)["Stalled"][0] == "False"


async def test_a_refused_status_is_not_tried_again_at_once_even_if_something_else_is_due_soon():
    """The TTL of a failed Job waits for the status that says why it failed."""
    server = FakeApiServer()
    server.chain["spec"]["template"]["ttlAfterFinished"] = "1h"
    job, pod = a_failed_job(a_plan(), "mini", FailureClass.DATA_INVALID)
    server.jobs, server.pods = [job], [pod]
    server.status_refusal = ApiError(422, "status.stages[0].message: Invalid value")
    controller = a_controller(server)
    for _ in range(3):
        assert await controller.reconcile(KEY) == 30
    assert "ttlSecondsAfterFinished" not in job["spec"]


async def test_a_refused_status_of_a_chain_with_an_invalid_spec_is_tried_again():
    class Refusing(FakeApiServer):
        async def patch_status(
            self, namespace: str, name: str, *, resource_version: str, status: dict[str, Any]
        ) -> str:
            if status["phase"] == "Failed":
                raise ApiError(422, "status.phase: Invalid value")
            return await super().patch_status(namespace, name, resource_version=resource_version, status=status)

    server = Refusing()
    server.chain["spec"]["task"]["labels"] = ["one"]
    assert await a_controller(server).reconcile(KEY) == 30


async def test_a_refused_suspension_stalls_the_chain_and_is_tried_again_later():
    server, clock = FakeApiServer(), FakeClock()
    controller = a_controller(server, clock)
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0])]
    server.chain["spec"]["suspend"] = True
    for number in range(3):
        server.change_refusal = ApiError(403, f"{DENIED} at port {number}")
        assert await controller.reconcile(KEY) == 30
    name = server.jobs[0]["metadata"]["name"]
    assert conditions(server)["Stalled"] == ("True", CHANGE_REFUSED)
    problem = f"; the API server refused to suspend Job {name}: {DENIED} at port 0; retrying every 30 s"
    assert problem in server.chain["status"]["message"]
    assert (server.refused_changes, len(server.statuses)) == (1, 1)
    assert server.events.count(CHANGE_REFUSED) == 1
    server.change_refusal = None
    clock.now_s = 30
    await controller.reconcile(KEY)
    assert server.jobs[0]["spec"]["suspend"] is True


def often_interrupted() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    job = a_job(a_plan(), "mini", active=1)
    ended = [a_pod(job, phase="Failed", exit_code=75, number=number) for number in range(8)]
    return job, [*ended, a_pod(job, number=8)]


def refused_by_its_node() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    job = a_job(a_plan(), "mini", condition="Failed", reason="BackoffLimitExceeded", failed=1)
    pod = a_pod(job)
    pod["status"] = {"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected"}
    return job, [pod]


def waiting_too_long() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    job = a_job(a_plan(), "mini", active=1)
    pod = a_pod(job, phase="Pending")
    pod["metadata"]["creationTimestamp"] = "2026-01-01T11:50:00Z"
    return job, [pod]


@pytest.mark.parametrize("world", [often_interrupted, refused_by_its_node, waiting_too_long])
async def test_a_pause_whose_job_cannot_be_deleted_is_written_once(
    world: Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]],
):
    """Each status that differs is an event that starts the next look."""
    server, clock = FakeApiServer(), FakeClock()
    server.chain["spec"]["template"]["pendingDeadline"] = "5m"
    job, server.pods = world()
    server.jobs = [job]
    server.change_refusal = ApiError(403, DENIED)
    controller = a_controller(server, clock)
    for second in range(5):
        clock.now_s = second
        assert await controller.reconcile(KEY) == 30 - second
    assert conditions(server)["Stalled"] == ("True", CHANGE_REFUSED)
    stage = server.chain["status"]["stages"][0]
    assert (stage["phase"], stage.get("restartPauses") or stage.get("missedStarts")) == ("Pending", 1)
    assert len(server.statuses) == 1


@pytest.mark.parametrize("status, stalls", [(403, "False"), (500, "False")])
async def test_a_pod_that_cannot_be_recorded_on_its_job_does_not_stall_the_chain(status: int, stalls: str):
    server = FakeApiServer()
    server.jobs = [a_job(a_plan(), "mini", active=1)]
    server.pods = [a_pod(server.jobs[0], number=number) for number in range(2)]
    server.change_refusal = ApiError(status, DENIED)
    assert await a_controller(server).reconcile(KEY) == 30
    assert server.chain["status"]["phase"] == "Running"
    assert conditions(server)["Stalled"][0] == stalls
    assert "the API server refused to annotate Job" in server.chain["status"]["message"]


async def test_a_job_that_is_deleted_is_not_resumed_before():
    """The chain is resumed and its image is corrected in one edit."""
    server = FakeApiServer()
    job = a_job(a_plan(), "mini", suspended=True)
    job["metadata"]["annotations"] = {"distillchain.io/suspended": "true"}
    server.jobs = [job]
    server.chain["status"] = {"observedGeneration": 0}
    server.chain["spec"]["template"]["image"] = "ghcr.io/example/corrected:1"
    resumed = []

    async def set_suspend(*_: object, suspend: bool, **__: object) -> None:
        resumed.append(suspend)

    server.set_suspend = set_suspend  # type: ignore[method-assign,assignment]
    await a_controller(server).reconcile(KEY)
    assert (server.jobs, resumed) == ([], [])


async def test_a_chain_that_succeeded_but_has_a_problem_is_looked_at_again_after_a_restart():
    server = FakeApiServer()
    stalled = [{"type": "Ready", "status": "False", "reason": "ReconcileFailed", "message": "no"}]
    server.chain["status"] = {"phase": "Succeeded", "observedGeneration": 1, "stages": [], "conditions": stalled}
    await a_controller(server).reconcile(KEY)
    assert server.statuses


async def test_a_finished_chain_is_read_once_and_its_jobs_are_not_listed():
    server = FakeApiServer()
    ready = [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": "done"}]
    server.chain["status"] = {"phase": "Succeeded", "observedGeneration": 1, "stages": [], "conditions": ready}
    server.jobs = [{"unreadable": True}]
    controller = a_controller(server)
    assert await controller.reconcile(KEY) is None
    assert server.statuses == []
    server.chain = a_document() | {
        "metadata": server.chain["metadata"] | {"generation": 2},
        "status": server.chain["status"],
    }
    server.jobs = []
    await controller.reconcile(KEY)  # edited
    assert len(server.jobs) == 1


async def test_values_of_a_later_release_in_the_status_do_not_hide_what_is_committed():
    server = FakeApiServer()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    status = server.chain["status"]
    status["stages"][0] |= {"phase": "Committed", "checkpoint": "s3://b/c", "failureClass": "Overheated"}
    status["conditions"].append(status["conditions"][0] | {"type": "Cooling"})
    status["stages"][1]["phase"] = "Dreaming"
    await controller.reconcile(KEY)
    assert [stage["phase"] for stage in server.chain["status"]["stages"]] == ["Committed", "Pending"]
    assert server.chain["status"]["stages"][0]["checkpoint"] == "s3://b/c"


async def test_the_labels_of_a_job_are_restored_so_that_it_is_found_again():
    class Listing(FakeApiServer):
        async def list_jobs(self, namespace: str, chain: str) -> Listed:
            return listed([job for job in self.jobs if job["metadata"].get("labels")])

        async def create_job(self, job: dict[str, Any]) -> None:
            if any(known["metadata"]["name"] == job["metadata"]["name"] for known in self.jobs):
                raise ApiError(409, "exists", reason="AlreadyExists")
            await super().create_job(job)

    server = Listing()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    (job,) = server.jobs
    labels = job["metadata"].pop("labels")

    server.change_refusal = ApiError(403, DENIED)
    assert await controller.reconcile(KEY) == 30
    assert "has lost its labels, and the API server refused to restore them" in server.chain["status"]["message"]
    server.change_refusal = None
    server.chain["metadata"]["generation"] = 2  # instead of waiting
    assert await controller.reconcile(KEY) == 1
    assert server.jobs[0]["metadata"]["labels"] == labels
    await controller.reconcile(KEY)
    assert server.chain["status"]["phase"] == "Running"


async def test_a_pod_with_the_label_of_the_chain_that_no_job_controls_stalls_it():
    server = FakeApiServer()
    stray = a_pod(a_job(a_plan(), "mini"))
    stray["metadata"] |= {"name": "debug", "ownerReferences": []}
    server.pods = [stray]
    await a_controller(server).reconcile(KEY)
    assert conditions(server)["Stalled"] == ("True", "PodRejected")
    assert server.chain["status"]["message"].startswith(
        "mini: waiting for pod debug to be deleted: no Job controls it; if it is not needed: kubectl delete pod debug"
    )
    assert server.jobs == []
    server.pods = []
    await a_controller(server).reconcile(KEY)
    assert conditions(server)["Stalled"][0] == "False"
