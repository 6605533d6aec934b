"""Jobs that have ended expire after `ttlAfterFinished`, and nothing runs again because of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chain_builders import a_commit, a_committed_job, a_document, a_job, a_plan, a_pod, retrying
from deciding import a_failed_job, created, decide
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus
from distillchain_api.retry_request import new_retry
from distillchain_api.wire.answer import ExportFailure
from distillchain_operator.caches.children import Children, Kind
from distillchain_operator.caches.finished import FinishedChains, has_succeeded
from distillchain_operator.decide.actions import Decision, SetTtl
from distillchain_operator.jobs.labels import CHAIN_LABEL
from fake_api_server import KEY, FakeApiServer, FakeClock, a_controller

AN_HOUR = {"image": "x", "ttlAfterFinished": "1h"}


def expiring(decision: Decision) -> dict[str, int]:
    return {action.name: action.seconds for action in decision.actions if isinstance(action, SetTtl)}


def name_of(job: dict[str, Any]) -> str:
    return str(job["metadata"]["name"])


def test_a_committed_job_expires_once_its_result_is_in_status_and_its_stage_stays_committed_without_it():
    plan = a_plan(template=AN_HOUR)
    job, pod = a_committed_job(plan, "mini")
    first = decide(plan, job, pods=(pod,))
    assert (expiring(first), first.look_again_s) == ({}, 0.1)
    decision = decide(plan, job, pods=(pod,), previous=first.status)
    assert (expiring(decision), decision.look_again_s) == ({name_of(job): 3600}, None)

    job["spec"]["ttlSecondsAfterFinished"] = 3600
    assert expiring(decide(plan, job, pods=(pod,), previous=decision.status)) == {}
    without = decide(plan, previous=decision.status)
    assert created(without) == ["tiny"]
    assert without.status.stages[0] == decision.status.stages[0]


def test_a_failed_job_expires_only_when_its_reason_is_in_status_and_its_stage_stays_failed():
    plan = a_plan(template=AN_HOUR)
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID, sentence="train.tsv:7")
    first = decide(plan, job, pods=(pod,))
    assert (expiring(first), first.look_again_s) == ({}, 0.1)

    second = decide(plan, job, pods=(pod,), previous=first.status)
    assert (expiring(second), second.look_again_s) == ({name_of(job): 3600}, None)
    later = decide(plan, previous=second.status)
    assert (later.status, later.actions) == (first.status, ())
    assert later.status.message == "mini: train.tsv:7"
    assert created(decide(retrying(plan, "mini"), previous=second.status)) == ["mini"]


def test_an_edit_of_the_stage_s_job_retries_it_and_an_edit_elsewhere_does_not():
    plan = a_plan(template=AN_HOUR)
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID)
    failed = decide(plan, job, pods=(pod,)).status

    elsewhere = a_plan(template=AN_HOUR, generation=2, maxParallelJobs=2)
    assert created(decide(elsewhere, previous=failed)) == []
    assert created(decide(a_plan(template={**AN_HOUR, "retries": 9}, generation=2), previous=failed)) == ["mini"]


def test_a_stage_that_found_its_teacher_damaged_stays_failed_when_its_job_is_gone():
    plan = a_plan(template=AN_HOUR)
    teacher, answered = a_committed_job(plan, "mini")
    job, pod = a_failed_job(plan, "tiny", FailureClass.CHECKPOINT_CORRUPT)
    status = decide(plan, teacher, pods=(answered,)).status
    failed = decide(plan, teacher, job, pods=(answered, pod), previous=status).status

    assert decide(plan, previous=failed).status == failed


def test_an_export_that_failed_stays_so_when_its_job_has_expired():
    plan = a_plan(stages=["mini"], template={**AN_HOUR, "export": {"onnx": {}}})
    failure = ExportFailure(failure_class=FailureClass.DISK_FULL, message="no space")
    answer = a_commit(plan.stages[0]).model_copy(update={"export_failure": failure})
    job = a_job(plan, "mini", condition="Complete", succeeded=1)
    pod = a_pod(job, phase="Succeeded", exit_code=0, message=answer.to_json())
    first = decide(plan, job, pods=(pod,))
    assert expiring(first) == {}
    second = decide(plan, job, pods=(pod,), previous=first.status)
    assert list(expiring(second)) == [name_of(job)]
    assert decide(plan, previous=second.status).status == first.status


def test_without_the_field_no_job_expires():
    plan = a_plan(template={"image": "x"})
    job, pod = a_committed_job(plan, "mini")
    status = decide(plan, job, pods=(pod,)).status
    assert expiring(decide(plan, job, pods=(pod,), previous=status)) == {}


def test_jobs_of_stages_that_the_chain_no_longer_has_expire_and_running_ones_do_not():
    old = a_plan(template=AN_HOUR)
    outdated, pod = a_failed_job(old, "tiny", FailureClass.CRASHED)
    plan = a_plan(template=AN_HOUR, stages=["mini"], generation=2)
    running = a_job(plan, "mini", active=1)
    assert expiring(decide(plan, outdated, running, pods=(pod, a_pod(running, number=1)))) == {name_of(outdated): 3600}


def test_a_job_that_has_succeeded_does_not_expire_while_another_job_of_its_stage_runs():
    """The cache may have the end of the Job before the answer of its pod."""
    plan = a_plan(template=AN_HOUR)
    succeeded, pod = a_committed_job(plan, "mini")
    other = a_job(a_plan(template=AN_HOUR | {"image": "y"}), "mini", active=1)
    assert name_of(other) != name_of(succeeded)
    running = decide(plan, other, pods=(a_pod(other),)).status
    assert expiring(decide(plan, succeeded, other, pods=(a_pod(other),), previous=running)) == {}
    committed = decide(plan, succeeded, other, pods=(pod, a_pod(other)), previous=running)
    assert committed.status.stages[0].phase == "Committed"


def test_the_field_changes_neither_the_job_nor_what_the_operator_takes_for_an_edit():
    first, second = (
        a_job(a_plan(), "mini"),
        a_job(
            a_plan(template={"image": "registry.example/distillchain-trainer:0.1", "ttlAfterFinished": "1h"}), "mini"
        ),
    )
    assert first == second


def a_server_with(job: dict[str, Any], pod: dict[str, Any]) -> FakeApiServer:
    server = FakeApiServer()
    document = a_document(stages=["mini"], template=AN_HOUR)
    server.chain["spec"] = document["spec"]
    server.jobs, server.pods = [job], [pod]
    return server


MINI = a_plan(stages=["mini"], template=AN_HOUR)


@pytest.mark.parametrize(
    "world", [a_committed_job(MINI, "mini"), a_failed_job(MINI, "mini", FailureClass.DATA_INVALID)]
)
async def test_the_operator_sets_the_ttl_in_the_look_that_follows_the_result(
    world: tuple[dict[str, Any], dict[str, Any]],
):
    job, pod = copy.deepcopy(world)
    server, clock = a_server_with(job, pod), FakeClock()
    controller = a_controller(server, clock)
    assert await controller.reconcile(KEY) == 0.1
    assert "ttlSecondsAfterFinished" not in job["spec"]
    clock.now_s = 0.1
    assert await controller.reconcile(KEY) is None
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600


@pytest.mark.parametrize(
    "deleted_at, want",
    [
        pytest.param("2026-01-01T12:30:10Z", "Failed", id="because its TTL has passed"),
        pytest.param("2026-01-01T12:30:09Z", "Pending", id="by hand, and then its pod could not stop in time"),
    ],
)
def test_a_failed_job_that_is_being_deleted_fails_its_stage_only_if_it_expires(deleted_at: str, want: str):
    plan = a_plan(stages=["mini"])
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID)
    job["status"]["conditions"][0]["lastTransitionTime"] = "2026-01-01T12:30:00Z"
    job["spec"]["ttlSecondsAfterFinished"] = 10  # of a policy of the cluster
    job["metadata"]["deletionTimestamp"] = deleted_at
    decision = decide(plan, job, pods=(pod,))
    assert (created(decision), decision.status.stages[0].phase) == ([], want)


def test_a_job_that_succeeded_and_expires_does_not_bring_back_a_commit_that_was_discarded():
    plan = a_plan(stages=["mini"])
    job, pod = a_committed_job(plan, "mini")
    job["spec"]["ttlSecondsAfterFinished"] = 10
    job["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"

    assert decide(plan, job, pods=(pod,)).status.stages[0].phase == "Pending"


async def test_a_failed_job_that_is_gone_at_once_fails_its_stage_with_the_reason_that_the_watches_have_reported():
    running, children = a_job(MINI, "mini", active=1), Children(FinishedChains())
    server = a_server_with(running, a_pod(running))
    controller = a_controller(server, children=children)

    async def look(version: int, *world: dict[str, Any]) -> dict[str, Any]:
        for kind, child in zip(Kind, world, strict=True):
            child["metadata"] |= {"namespace": "ml", "resourceVersion": str(version)}
            child["metadata"]["labels"] = {**child["metadata"]["labels"], CHAIN_LABEL: KEY.name}
            children.follow(kind, None, is_followed=True)
            children.apply(kind, "MODIFIED", child)
        controller.chains.report(KEY, None)
        await controller.reconcile(KEY)
        status: dict[str, Any] = server.chain["status"]
        return status

    await look(2, running, *server.pods)
    server.jobs, server.pods = [], []
    job, pod = a_failed_job(MINI, "mini", FailureClass.DATA_INVALID, sentence="train.tsv:7")
    job["spec"]["ttlSecondsAfterFinished"] = 0
    assert (await look(3, job, pod))["message"] == "mini: train.tsv:7"
    assert server.jobs == []

    server.chain["metadata"]["annotations"] = new_retry(["mini"], token="1", committed_too=False)
    controller.chains.report(KEY, 7)
    await controller.reconcile(KEY)
    await look(4, job, pod)  # the watch is late
    assert (len(server.jobs), server.chain["status"]["phase"]) == (1, "Running")


async def test_the_last_job_expires_although_the_operator_restarts_between_the_success_and_the_end_of_the_job():
    """The success is in the answer of the pod, a second before the Job controller says that the Job is complete."""
    job, pod = a_committed_job(MINI, "mini")
    conditions = job["status"].pop("conditions")
    server = a_server_with(job, pod)
    await a_controller(server).reconcile(KEY)
    assert server.chain["status"]["phase"] == "Succeeded"
    job["status"]["conditions"] = conditions
    await a_controller(server).reconcile(KEY)
    assert job["spec"]["ttlSecondsAfterFinished"] == 3600


def test_a_chain_that_has_succeeded_is_looked_at_again_when_a_stage_of_it_is_retried():
    plan = a_plan(stages=["mini"])
    job, pod = a_committed_job(plan, "mini")
    status = decide(plan, job, pods=(pod,), previous=ChainStatus()).status.to_document()
    metadata = {"namespace": "ml", "name": "relay", "uid": "1", "generation": 1}
    assert has_succeeded({"metadata": metadata, "status": status})
    known = FinishedChains()
    known.note({"metadata": metadata})

    asked = metadata | {"annotations": {"distillchain.io/retry": "mini@1"}}

    assert not has_succeeded({"metadata": asked, "status": status})
    assert (known.is_unchanged(metadata), known.is_unchanged(asked)) == (True, False)
    assert has_succeeded({"metadata": asked, "status": {**status, "handledRetry": "mini@1"}})
