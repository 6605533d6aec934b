"""A request to run stages again whose Jobs cannot be deleted yet: it stays open, and nothing else counts it as done."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_committed_job, a_plan
from deciding import a_failed_job
from distillchain_api.failures import FailureClass
from distillchain_api.retry_request import new_retry
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.controller.controller import Controller
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller

PLAN = a_plan()
REFUSALS = [pytest.param(403, id="a policy"), pytest.param(503, id="an API server that is overloaded")]


async def a_chain_with(
    *worlds: tuple[dict[str, Any], dict[str, Any]], refusal: int
) -> tuple[FakeApiServer, FakeClock, Controller]:
    """A chain whose status has what these Jobs answered, and an API server that refuses to delete them from now on."""
    server, clock = FakeApiServer(), FakeClock()
    server.jobs, server.pods = [job for job, _ in worlds], [pod for _, pod in worlds]
    controller = a_controller(server, clock)
    await controller.reconcile(KEY)
    server.change_refusal = ApiError(refusal, "denied")
    return server, clock, controller


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_failed_stage_runs_again_once_its_job_can_be_deleted(refusal: int):
    server, clock, controller = await a_chain_with(
        a_failed_job(PLAN, "mini", FailureClass.DATA_INVALID), refusal=refusal
    )
    failed = server.chain["status"]["stages"]
    server.chain["metadata"]["annotations"] = new_retry(["mini"], token="1")
    name = server.jobs[0]["metadata"]["name"]
    for _ in range(3):
        assert await controller.reconcile(KEY) == 30
    status = server.chain["status"]
    assert (status["stages"], status.get("handledRetry")) == (failed, None)
    assert status["message"] == (
        f"mini: running again: the user retried the stage; the API server refused to delete Job {name}: denied; "
        "retrying every 30 s"
    )
    assert len(server.statuses) == 2

    server.change_refusal, clock.now_s = None, 30
    for _ in range(2):
        await controller.reconcile(KEY)
    assert [job["metadata"]["uid"] for job in server.jobs] == ["uid-of-the-job"]
    assert (server.chain["status"]["phase"], server.chain["status"]["handledRetry"]) == ("Running", "mini@1")


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_committed_stages_run_again_once_their_jobs_can_be_deleted(refusal: int):
    """With `--discard`, their commits are gone: a status that says Succeeded would name checkpoints that do not exist."""
    worlds = (a_committed_job(PLAN, "mini"), a_committed_job(PLAN, "tiny"))
    server, clock, controller = await a_chain_with(*worlds, refusal=refusal)
    assert server.chain["status"]["phase"] == "Succeeded"
    server.chain["metadata"]["annotations"] = new_retry(["mini", "tiny"], token="1", committed_too=True)
    for _ in range(3):
        assert await controller.reconcile(KEY) == 30
    assert "handledRetry" not in server.chain["status"]

    server.change_refusal, clock.now_s = None, 30
    for _ in range(2):
        await controller.reconcile(KEY)
    assert [job["metadata"]["uid"] for job in server.jobs] == ["uid-of-the-job"]
    assert [stage["phase"] for stage in server.chain["status"]["stages"]] == ["Running", "Pending"]


async def test_a_damaged_checkpoint_is_still_checked_after_one_of_two_deletions_was_refused():
    worlds = (a_committed_job(PLAN, "mini"), a_failed_job(PLAN, "tiny", FailureClass.CHECKPOINT_CORRUPT))
    server, clock, controller = await a_chain_with(*worlds, refusal=503)
    server.chain["metadata"]["annotations"] = new_retry(["tiny"], token="1")
    await controller.reconcile(KEY)
    assert [stage["phase"] for stage in server.chain["status"]["stages"]] == ["Committed", "Failed"]

    server.change_refusal, clock.now_s = None, 30
    for _ in range(2):
        await controller.reconcile(KEY)
    assert ["-mini-" in job["metadata"]["name"] for job in server.jobs] == [True]
    assert [job["metadata"]["uid"] for job in server.jobs] == ["uid-of-the-job"]
