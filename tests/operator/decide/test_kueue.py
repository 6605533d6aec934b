"""Jobs in a queue of Kueue: what the operator creates, what it leaves to Kueue, and what status says."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import CHAIN_UID, IMAGE, NOON, a_committed_job, a_job, a_plan, a_pod
from deciding import created, decide, entry
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.decide.actions import CreateJob, DeleteJob, RemoveSuspendNote, SetSuspend
from distillchain_operator.decide.suspension import stop_all
from distillchain_operator.jobs.labels import SUSPENDED_ANNOTATION
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.status.transitions import transitions
from fake_api_server import KEY, FakeApiServer, a_controller


def queued_plan(**spec: Any) -> Plan:
    return a_plan(template={"image": IMAGE, "queueName": "gpus", **spec.pop("template", {})}, **spec)


def held(plan: Plan, **job: Any) -> dict[str, Any]:
    """The Job of `mini` that Kueue suspends."""
    document = a_job(plan, "mini", **job)
    document["spec"]["suspend"] = True
    return document


def test_a_job_in_a_queue_is_created_suspended_and_only_the_job_has_the_label():
    decision = decide(queued_plan())
    (action,) = [action for action in decision.actions if isinstance(action, CreateJob)]
    label = {"kueue.x-k8s.io/queue-name": "gpus"}
    assert action.job["spec"]["suspend"] is True
    assert label.items() <= action.job["metadata"]["labels"].items()
    assert not label.items() & action.job["spec"]["template"]["metadata"]["labels"].items()

    stage = entry(decision, "mini")
    assert (stage.phase, stage.admission) == ("Pending", "WaitingForQuota")
    (queued,) = transitions(ChainStatus(), decision.status)
    assert (queued.reason, queued.message) == ("StageQueued", f"stage mini: Job {stage.job}")


def test_an_edit_of_the_queue_gives_another_job_unless_its_pod_has_started():
    plan, edited = queued_plan(), queued_plan(template={"queueName": "others"}, generation=2)
    job = held(plan)
    decision = decide(edited, job)
    assert [action.why for action in decision.actions if isinstance(action, DeleteJob)] == [
        "the chain was edited before its pod started"
    ]
    running = a_job(plan, "mini", active=1)
    assert decide(edited, running, pods=(a_pod(running),)).actions == ()


def test_a_job_that_waits_for_quota_is_left_to_kueue():
    plan = queued_plan()
    job = held(plan)
    job["spec"]["template"]["spec"]["nodeSelector"] = {"accelerator": "a100"}  # of its flavor
    decision = decide(plan, job)
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    assert decision.actions == ()
    assert (decision.status.phase, decision.status.conditions[1].reason) == ("Pending", "WaitingForQuota")
    assert entry(decision, "mini").message == (
        f"waiting for quota: Job {name} is in queue gpus; to see why: kubectl describe workloads "
        f"-l kueue.x-k8s.io/job-uid={uid}"
    )


def test_an_admitted_job_runs_as_any_other():
    plan = queued_plan()
    job = a_job(plan, "mini", active=1)
    before = decide(plan, held(plan)).status
    decision = decide(plan, job, pods=(a_pod(job),), previous=before)
    stage = entry(decision, "mini")
    assert (decision.actions, stage.phase, stage.admission) == ((), "Running", "Admitted")
    assert [event.reason for event in transitions(before, decision.status)] == ["StageStarted"]


def test_a_job_that_kueue_stops_is_requeued_and_uses_no_retry():
    plan = queued_plan()
    running = a_job(plan, "mini", active=1)
    before = decide(plan, running, pods=(a_pod(running),)).status
    job = held(plan)
    pod = a_pod(job)
    pod["metadata"]["deletionTimestamp"] = NOON

    stopping = decide(plan, job, pods=(pod,), previous=before)
    assert entry(stopping, "mini").message == (
        f"Kueue stops Job {job['metadata']['name']}: pod {pod['metadata']['name']} is saving its state"
    )
    assert [event.reason for event in transitions(before, stopping.status)] == ["StageRequeued"]
    waiting = decide(plan, job | {"metadata": noted(job, pod)}, previous=stopping.status)
    assert (entry(waiting, "mini").phase, entry(waiting, "mini").admission) == ("Pending", "Requeued")
    assert (waiting.actions, waiting.status.phase) == ((), "Running")
    assert entry(waiting, "mini").message.startswith(
        f"Kueue stopped Job {job['metadata']['name']}, which waits in queue gpus and resumes from its saved state; "
    )
    assert transitions(stopping.status, waiting.status) == []


def noted(job: dict[str, Any], pod: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = job["metadata"]
    return metadata | {"annotations": {"distillchain.io/pods": pod["metadata"]["uid"][:8]}}


@pytest.mark.parametrize("reason", ["BackoffLimitExceeded", "FailedIndexes"])
def test_a_job_that_fails_because_it_was_stopped_runs_again(reason: str):
    plan = queued_plan(template={"retries": 0})
    job = held(plan, failed=1, condition="Failed", reason=reason)
    decision = decide(plan, job)
    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert (
        entry(decision, "mini").message
        == f"running again: Job {job['metadata']['name']} was stopped, which is not counted as a crash"
    )


@pytest.mark.parametrize("is_admitted", [True, False])
def test_a_suspended_chain_deletes_its_job_because_kueue_would_resume_it(is_admitted: bool):
    plan, suspended = queued_plan(), queued_plan(suspend=True)
    job = a_job(plan, "mini", active=1) if is_admitted else held(plan)
    pods = (a_pod(job),) if is_admitted else ()
    decision = decide(suspended, job, pods=pods)
    assert [action.why for action in decision.actions if isinstance(action, DeleteJob)] == [
        "the chain was suspended: its quota in queue gpus is free"
    ]
    assert not [action for action in decision.actions if isinstance(action, SetSuspend)]
    assert decision.status.phase == "Suspended"


def test_a_suspended_chain_keeps_a_job_that_has_answered_until_the_job_controller_says_so():
    plan, suspended = queued_plan(), queued_plan(suspend=True)
    job, pod = a_committed_job(plan, "mini")
    job["status"] = {"startTime": NOON, "active": 1}
    running = decide(plan, job).status
    decision = decide(suspended, job, pods=(pod,), previous=running)
    assert not [action for action in decision.actions if isinstance(action, DeleteJob)]
    assert entry(decision, "mini").phase == "Committed"
    observed = observe(chain_uid=CHAIN_UID, jobs=[job], pods=[pod])
    assert stop_all(observed) == []


@pytest.mark.parametrize("is_admitted", [True, False])
async def test_an_invalid_chain_that_is_suspended_deletes_its_job_because_kueue_would_resume_it(is_admitted: bool):
    server = FakeApiServer()
    server.chain["spec"] |= {"suspend": True}
    server.chain["spec"]["task"]["labels"] = ["one"]
    plan = queued_plan()
    server.jobs = [a_job(plan, "mini", active=1) if is_admitted else held(plan)]
    await a_controller(server).reconcile(KEY)
    assert server.jobs == []


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_job_that_an_earlier_release_suspended_loses_the_note_and_is_resumed_by_kueue_alone(is_held: bool):
    server, plan = FakeApiServer(), queued_plan()
    server.chain["spec"]["template"]["queueName"] = "gpus"
    job = held(plan) if is_held else a_job(plan, "mini", active=1)
    job["metadata"].setdefault("annotations", {})[SUSPENDED_ANNOTATION] = "true"
    server.jobs = [job]
    (action,) = decide(plan, job).actions
    assert action == RemoveSuspendNote(job["metadata"]["name"], job["metadata"]["uid"])
    await a_controller(server).reconcile(KEY)
    assert SUSPENDED_ANNOTATION not in job["metadata"]["annotations"]
    assert bool(job["spec"].get("suspend")) is is_held


def test_a_job_that_another_cluster_ran_fails_with_the_reason_instead_of_running_for_ever():
    plan = queued_plan(template={"job": {"managedBy": "kueue.x-k8s.io/multikueue"}})
    job = a_job(plan, "mini", succeeded=1, condition="Complete")
    assert job["spec"]["managedBy"] == "kueue.x-k8s.io/multikueue"
    decision = decide(plan, job)
    assert (created(decision), entry(decision, "mini").phase) == ([], "Failed")
    assert entry(decision, "mini").message == (
        f"Job {job['metadata']['name']} succeeded, but kueue.x-k8s.io/multikueue left no pod with its result in this "
        "namespace; use a controller or a queue that runs the pods here, then distillchain retry: a committed stage is "
        "found"
    )


def test_the_queue_of_a_stage_and_of_its_pass_take_precedence():
    plan = queued_plan()
    document = plan.chain.to_document()
    document["spec"]["stages"][1] |= {"queueName": "small", "teacherPass": {"queueName": "large"}}
    chain = type(plan.chain).parse(document)
    queues = {stage.name: stage.queue_name for stage in build_plan(chain).vertices}
    assert queues == {"mini": "gpus", "tiny-pass": "large", "tiny": "small"}
