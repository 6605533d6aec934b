"""News that is over a moment later is not written to status; all other news is."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_committed_job, a_job, a_plan, a_pod
from deciding import decide
from distillchain_operator.status.brief import BRIEF_S, is_brief
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller

PLAN = a_plan()
FIRST = a_job(PLAN, "mini")
WAITING = decide(PLAN, FIRST).status


def after(*pods: dict[str, Any], job: dict[str, Any] = FIRST, **more: Any) -> Any:
    return decide(PLAN, job, pods=pods, previous=WAITING, **more).status


def test_a_pod_that_is_starting_is_brief_news():
    status = after(a_pod(FIRST, phase="Pending"))
    assert status != WAITING
    assert is_brief(WAITING, status)


def stuck() -> dict[str, Any]:
    waiting = {"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
    return a_pod(FIRST, phase="Pending", containerStatuses=[waiting])


def suspended() -> Any:
    return decide(a_plan(suspend=True), FIRST, pods=(a_pod(FIRST, phase="Pending"),), previous=WAITING).status


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(after(a_pod(FIRST)), id="the pod runs"),
        pytest.param(after(stuck()), id="the pod needs the user"),
        pytest.param(suspended(), id="the chain is suspended"),
        pytest.param(
            decide(PLAN, a_committed_job(PLAN, "mini")[0], pods=(a_committed_job(PLAN, "mini")[1],)).status,
            id="the stage is committed",
        ),
        pytest.param(
            after(a_pod(FIRST, phase="Failed", exit_code=1), a_pod(FIRST, phase="Pending", number=1)),
            id="it is the second pod",
        ),
    ],
)
def test_other_news_is_not_brief(status: Any):
    assert not is_brief(WAITING, status)


def test_no_news_is_not_brief():
    assert not is_brief(WAITING, WAITING)
    status = after(a_pod(FIRST, phase="Pending"))
    assert not is_brief(status, status)


async def test_a_start_is_written_once_its_pod_runs_and_earlier_if_that_takes_long():
    server, clock = FakeApiServer(), FakeClock()
    controller = a_controller(server, clock)
    await controller.reconcile(KEY)
    (job,) = server.jobs
    server.pods = [a_pod(job, phase="Pending")]
    assert await controller.reconcile(KEY) == BRIEF_S
    assert len(server.statuses) == 1
    clock.now_s += BRIEF_S
    await controller.reconcile(KEY)
    assert server.chain["status"]["stages"][0]["message"].endswith("is starting")
    server.pods = [a_pod(job)]
    await controller.reconcile(KEY)
    assert [status["stages"][0]["attempt"] for status in server.statuses] == [0, 1, 1]


async def test_a_pod_that_runs_at_once_takes_one_write():
    server = FakeApiServer()
    controller = a_controller(server)
    await controller.reconcile(KEY)
    (job,) = server.jobs
    for phase in ("Pending", "Running"):
        server.pods = [a_pod(job, phase=phase)]
        await controller.reconcile(KEY)
    assert [status["stages"][0]["attempt"] for status in server.statuses] == [0, 1]
