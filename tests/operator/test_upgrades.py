"""An operator of another release, with another default image, leaves alone what is finished."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from chain_builders import a_document, a_job, a_plan, a_pod
from deciding import a_committed_job, a_failed_job
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from fake_api_server import KEY, FakeApiServer, a_controller

OLD, NEW = "registry.example/trainer:0.1", "registry.example/trainer:0.2"
Cluster = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def succeeded(plan: Plan) -> Cluster:
    ended = [a_committed_job(plan, stage.name, image=OLD) for stage in plan.stages]
    return [job for job, _ in ended], [pod for _, pod in ended]


def failed(plan: Plan) -> Cluster:
    committed, failure = (
        a_committed_job(plan, "mini", image=OLD),
        a_failed_job(plan, "tiny", FailureClass.GATE_NOT_MET, image=OLD),
    )
    return [committed[0], failure[0]], [committed[1], failure[1]]


def running(plan: Plan) -> Cluster:
    job = a_job(plan, "mini", image=OLD, active=1)
    return [job], [a_pod(job, running=True)]


@pytest.mark.parametrize(
    "state, keeps_jobs", [(succeeded, True), (succeeded, False), (failed, True), (failed, False), (running, True)]
)
async def test_another_default_image_restarts_none_of_fifty_chains(state: Callable[[Plan], Cluster], keeps_jobs: bool):
    first = FakeApiServer()
    first.chain["spec"] = a_document(template={})["spec"]
    first.jobs, first.pods = state(a_plan(template={}))
    for _ in range(2):
        await a_controller(first, trainer_image=OLD).reconcile(KEY)
    assert first.chain["status"]["phase"].lower() == state.__name__
    if not keeps_jobs:  # their time to live has ended
        first.jobs, first.pods = [], []
    first.statuses.clear()

    for _ in range(50):
        server = copy.deepcopy(first)
        await a_controller(server, trainer_image=NEW).reconcile(KEY)
        assert (server.jobs, server.statuses) == (first.jobs, [])
