"""`spec.timeout` when the API server refuses the first Job of a chain that gets its time again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chain_builders import a_plan
from deciding import NOON, committed_status, decide
from distillchain_api.retry_request import new_retry
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.status.chain_status import timestamp
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller

RETRY, EDIT = "a retry", "an edit"


def a_chain_out_of_time(*committed: str) -> FakeApiServer:
    """A chain that failed of its timeout of two hours, with its first stages committed."""
    plan = a_plan(timeout="2h")
    status = committed_status(plan, *committed) if committed else decide(plan).status
    status = status.model_copy(update={"started_at": timestamp(NOON)})
    server = FakeApiServer()
    server.chain["spec"]["timeout"] = "2h"
    failed = decide(plan, previous=status, now=NOON + timedelta(hours=3)).status
    assert failed.phase == "Failed"
    server.chain["status"] = failed.to_document()
    return server


@pytest.mark.parametrize("how", [RETRY, EDIT])
@pytest.mark.parametrize("committed", [("mini",), ()])
async def test_a_chain_has_its_whole_time_again_although_a_quota_refuses_its_job_for_a_moment(
    how: str, committed: tuple[str, ...]
):
    server, clock = a_chain_out_of_time(*committed), FakeClock()
    now = NOON + timedelta(hours=4)
    controller = a_controller(server, clock, now=lambda: now)
    server.refusal = ApiError(403, "exceeded quota: gpu")
    if how == RETRY:
        server.chain["metadata"]["annotations"] = new_retry(["mini", "tiny"], token="1")
    else:
        server.chain["spec"]["timeout"] = "3h"
        server.chain["metadata"]["generation"] = 2
    await controller.reconcile(KEY)
    assert server.jobs == []
    # A stage that is committed shows that the chain has begun; without one, no time passes before its first Job.
    assert server.chain["status"].get("startedAt") == (timestamp(now) if committed else None)

    server.refusal, clock.now_s, now = None, 31, now + timedelta(seconds=31)
    await controller.reconcile(KEY)
    assert (len(server.jobs), server.chain["status"]["phase"]) == (1, "Running")
    begun_at = now - timedelta(seconds=31) if committed else now
    assert server.chain["status"]["startedAt"] == timestamp(begun_at)
