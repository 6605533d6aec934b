"""An operator of another release, with another default image, leaves alone what is finished, or has failed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from chain_builders import a_document, a_job, a_plan, a_pod, retrying
from deciding import a_committed_job, a_failed_job, committed_status, created, decide, deleted, entry
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


def test_a_failure_that_no_status_has_yet_counts_for_the_next_operator():
    plan = a_plan(template={"retries": 0})
    running = decide(plan, a_job(plan, "mini", image=OLD, active=1), image=OLD).status
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID, image=OLD)
    decision = decide(plan, job, pods=(pod,), previous=running, image=NEW)
    assert decision.actions == ()
    assert (entry(decision, "mini").phase, entry(decision, "mini").job) == ("Failed", job["metadata"]["name"])

    edited = a_plan(template={"retries": 1}, generation=2)
    assert created(decide(edited, job, pods=(pod,), previous=running, image=NEW)) == ["mini"]


def test_an_edit_of_something_else_does_not_retry_a_stage_whose_failed_job_had_another_default_image():
    plan = a_plan(template={})
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID, image=OLD)
    failed = decide(plan, job, pods=(pod,), image=OLD).status
    suspended = decide(a_plan(template={}, suspend=True, generation=2), job, previous=failed, image=NEW).status
    assert suspended.phase == "Failed"
    resumed = decide(a_plan(template={}, generation=3), job, previous=suspended, image=NEW)
    assert (resumed.actions, resumed.status.entries) == ((), failed.entries)


def test_a_retry_deletes_the_failed_jobs_of_all_default_images():
    plan = a_plan(template={})
    failures = [a_failed_job(plan, "mini", FailureClass.CRASHED, image=image) for image in (OLD, NEW)]
    jobs, pods = [job for job, _ in failures], tuple(pod for _, pod in failures)
    failed = decide(plan, *jobs, pods=pods, image=NEW).status
    retried = decide(retrying(plan, "mini"), *jobs, pods=pods, previous=failed, image=NEW)
    assert sorted(deleted(retried)) == sorted(job["metadata"]["name"] for job in jobs)
    assert created(decide(retrying(plan, "mini"), previous=retried.status, image=NEW)) == ["mini"]


def test_a_damaged_checkpoint_is_not_committed_again_by_its_job_of_another_default_image():
    plan = a_plan(template={})
    committed, answered = a_committed_job(plan, "mini", image=OLD)
    job, pod = a_failed_job(plan, "tiny", FailureClass.CHECKPOINT_CORRUPT, image=OLD)
    jobs, pods = (committed, job), (answered, pod)
    failed = decide(plan, *jobs, pods=pods, previous=committed_status(plan, "mini", image=OLD), image=OLD).status
    retried = decide(retrying(plan, "tiny"), *jobs, pods=pods, previous=failed, image=NEW)
    assert sorted(deleted(retried)) == sorted(job["metadata"]["name"] for job in jobs)
    assert created(retried) == []


def test_of_two_jobs_that_have_both_committed_their_stage_none_is_deleted():
    """Two operators with different default images would delete one each, and both answers with them."""
    plan = a_plan(template={})
    answers = [a_committed_job(plan, "mini", image=image) for image in (OLD, NEW)]
    for job, _ in answers:
        job["status"] = {"active": 1}  # the Job controller has not seen the end of the pods
    decision = decide(plan, *(job for job, _ in answers), pods=tuple(pod for _, pod in answers), image=NEW)
    assert deleted(decision) == []
    assert (entry(decision, "mini").phase, created(decision)) == ("Committed", ["tiny"])
