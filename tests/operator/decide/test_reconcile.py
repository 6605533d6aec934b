"""What one reconcile decides: the order of stages, commits, suspension and Jobs of other owners."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from chain_builders import (
    CHAIN_UID,
    NOON,
    a_commit,
    a_committed_job,
    a_job,
    a_plan,
    a_pod,
)
from deciding import committed_status, created, decide, deleted, entry, stalled
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.decide.actions import SOON_S, DeleteJob, SetSuspend
from distillchain_operator.decide.reconcile import reconcile, running_pod
from distillchain_operator.jobs.labels import PODS_ANNOTATION
from distillchain_operator.jobs.observed import Observed
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.jobs.stage_job import JobDefaults
from distillchain_operator.jobs.wanted_jobs import WantedJobs
from distillchain_operator.status.transitions import transitions

TIGHT = {"model": "hf://org/teacher", "gate": {"minMetric": 0.95}}


def test_a_new_chain_starts_its_first_stage_and_no_other():
    decision = decide(a_plan())
    assert created(decision) == ["mini"]
    assert (entry(decision, "mini").phase, entry(decision, "tiny").phase) == ("Running", "Pending")
    assert decision.status.stage == "0/2"


def test_a_stage_waits_until_its_teacher_is_committed():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    decision = decide(plan, job, pods=(a_pod(job),))
    assert decision.actions == ()
    assert entry(decision, "tiny").message == "waiting for mini to commit"


def test_a_succeeded_jobs_answer_commits_its_stage_and_starts_the_next():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini", accuracy=0.88)
    decision = decide(plan, job, pods=(pod,))
    assert created(decision) == ["tiny"]
    assert entry(decision, "mini").phase == "Committed"
    assert decision.status.metric == "0.8800"
    assert [e.reason for e in transitions(ChainStatus(), decision.status)] == ["StageCommitted", "StageStarted"]


@pytest.mark.parametrize(
    "attempt, reused",
    [
        pytest.param("0123abcd-0000-4000-8000-000000000000-5f3a9c", False, id="an earlier pod of the same Job"),
        pytest.param("fedcba98-0000-4000-8000-000000000000-5f3a9c", True, id="another chain"),
    ],
)
def test_a_commit_by_an_earlier_pod_of_the_same_job_is_not_reported_as_reused(attempt: str, reused: bool):
    """That pod was lost with its node before its answer was read, and the next pod only found the commit."""
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini", reused=True, attempt=attempt)
    job["metadata"]["annotations"] = {PODS_ANNOTATION: f"0123abcd,{pod['metadata']['uid'][:8]}"}

    assert entry(decide(plan, job, pods=(pod,)), "mini").reused is reused


def test_a_committed_stage_stays_committed_when_its_job_is_deleted():
    plan = a_plan()
    decision = decide(plan, previous=committed_status(plan, "mini", "tiny"))
    assert decision.actions == ()
    assert decision.status.phase == "Succeeded"


def test_a_second_reconcile_without_changes_gives_the_same_status():
    plan = a_plan()
    first = decide(plan, previous=committed_status(plan, "mini"))
    again = reconcile(
        plan,
        Observed(),
        previous=first.status,
        now=datetime(2027, 1, 1, tzinfo=UTC),
        wanted=WantedJobs(plan, JobDefaults()),
    )
    assert again.status == first.status


def test_suspend_stops_a_later_stage_that_still_runs():
    loose = a_plan()
    tight = a_plan(generation=2, teacher=TIGHT, suspend=True)
    job = a_job(loose, "tiny", active=1)
    decision = decide(tight, job, pods=(a_pod(job),), previous=committed_status(loose, "mini"))
    assert decision.actions == (SetSuspend(job["metadata"]["name"], job["metadata"]["uid"], True),)


def test_suspend_deletes_a_job_whose_pod_has_not_started():
    """Kubernetes counts a pod that is stopped before it ran as a crash; with `retries: 0` the chain would fail."""
    running, suspended = a_plan(), a_plan(suspend=True)
    job = a_job(running, "mini", active=1)
    decision = decide(suspended, job, pods=(a_pod(job, phase="Pending"),))
    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert decision.status.phase == "Suspended"
    assert created(decide(running, previous=decision.status)) == ["mini"]


def test_suspend_stops_the_running_job_and_resume_continues_it():
    running, suspended = a_plan(), a_plan(suspend=True)
    job = a_job(running, "mini", active=1)
    decision = decide(suspended, job, pods=(a_pod(job),))
    assert [a.suspend for a in decision.actions if isinstance(a, SetSuspend)] == [True]
    assert decision.status.phase == "Suspended"
    conditions = {c.type: c.status for c in decision.status.conditions}
    assert conditions["Suspended"] == "False"  # its pod is still saving its state

    job = a_job(running, "mini", suspended=True)
    decision = decide(suspended, job)
    assert decision.actions == ()
    assert {c.type: c.status for c in decision.status.conditions}["Suspended"] == "True"
    decision = decide(running, job, previous=decision.status)
    assert [a.suspend for a in decision.actions if isinstance(a, SetSuspend)] == [False]


def test_a_job_that_another_controller_suspended_is_not_resumed_and_the_message_says_so():
    plan, suspended = a_plan(), a_plan(suspend=True)
    job = a_job(plan, "mini", suspended=True)
    job["metadata"]["annotations"] = {}
    decision = decide(plan, job)
    assert decision.actions == ()
    name = job["metadata"]["name"]
    assert decision.status.message == (
        f"running mini: Job {name} was suspended by another controller, which resumes it; if no controller manages the "
        f"""Job: kubectl patch job {name} -p '{{"spec":{{"suspend":false}}}}'; if Kueue does, the Job has no queue: """
        "set queueName"
    )

    decision = decide(suspended, job, previous=decision.status)
    assert (decision.actions, decision.status.phase) == ((), "Suspended")
    assert decide(plan, job, previous=decision.status).actions == ()


def test_the_annotation_of_a_suspension_is_removed_when_another_controller_resumes_the_job():
    """Otherwise the operator would resume the Job the next time that the other controller suspends it."""
    plan = a_plan()
    job = a_job(plan, "mini", suspended=True)
    job["spec"]["suspend"] = False
    (action,) = (action for action in decide(plan, job).actions if isinstance(action, SetSuspend))
    assert not action.suspend


def test_a_suspended_chain_starts_nothing():
    assert decide(a_plan(suspend=True)).actions == ()


def test_jobs_of_another_owner_do_not_count():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    job["metadata"]["ownerReferences"][0]["uid"] = "someone-else"
    assert created(decide(plan, job, pods=(pod,))) == ["mini"]  # the API server answers 409, and the stage waits


def test_a_recreated_chain_with_another_placement_waits_for_the_pods_of_the_deleted_one():
    """Its Jobs have other names, so they do not conflict with the old ones."""
    old = a_job(a_plan(template={"image": "registry.example/other:1"}), "mini", active=1)
    old["metadata"]["ownerReferences"][0]["uid"] = "the-earlier-chain"
    plan, pod = a_plan(), a_pod(old)
    decision = decide(plan, old, pods=(pod,))
    assert created(decision) == []
    assert running_pod(plan, observe(chain_uid=CHAIN_UID, jobs=[old], pods=[pod])) is None
    name = old["metadata"]["name"]
    assert entry(decision, "mini").message == (
        f"waiting for Job {name} to be deleted: it belongs to another owner, such as a deleted chain relay; if it is not "
        f"needed: kubectl delete job {name}"
    )
    assert stalled(decision).status == "False", "the garbage collector deletes it"
    suspended = decide(a_plan(suspend=True), old, pods=(pod,)).status
    assert {c.type: c.status for c in suspended.conditions}["Suspended"] == "True", "none of its own pods runs"
    assert created(decide(plan, old)) == ["mini"]

    del old["metadata"]["ownerReferences"]
    ownerless = decide(plan, old, pods=(pod,))
    assert f"waiting for Job {name} to be deleted: no chain controls it" in stalled(ownerless).message
    assert stalled(ownerless).status == "True"


def test_an_answer_for_another_digest_commits_nothing():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    other = a_commit(plan.stages[0]).model_copy(update={"digest": "0" * 64})
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = other.to_json()
    assert entry(decide(plan, job, pods=(pod,)), "mini").phase == "Failed"


@pytest.mark.parametrize("is_in_status", [False, True])
def test_a_second_job_of_a_stage_that_has_committed_is_deleted_before_the_next_stage_starts(is_in_status: bool):
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    second = a_job(plan, "mini", active=1)
    second["metadata"] |= {"name": "relay-mini-of-another-operator", "uid": "second"}
    previous = committed_status(plan, "mini") if is_in_status else None
    decision = decide(plan, job, second, pods=(pod, a_pod(second, number=1)), previous=previous)
    assert [(a.name, a.uid) for a in decision.actions if isinstance(a, DeleteJob)] == [
        ("relay-mini-of-another-operator", "second")
    ]
    assert entry(decision, "mini").job == job["metadata"]["name"]
    assert created(decision) == []
    assert created(decide(plan, job, pods=(pod,), previous=decision.status)) == ["tiny"]


def test_the_next_stage_starts_once_the_pod_of_the_last_one_has_answered():
    """The Job controller marks the Job as complete about a second later."""
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, phase="Succeeded", exit_code=0, message=a_commit(plan.stages[0]).to_json())
    assert created(decide(plan, job, pods=(pod,))) == ["tiny"]

    sidecar = a_pod(job, exit_code=0, message=a_commit(plan.stages[0]).to_json())
    sidecar["status"]["containerStatuses"].append({"name": "shipper", "state": {"running": {}}})
    assert created(decide(plan, job, pods=(sidecar,))) == []
    failed = a_pod(job, phase="Failed", exit_code=0, message=a_commit(plan.stages[0]).to_json())
    assert created(decide(plan, job, pods=(failed,))) == []  # the Job controller may replace it


@pytest.mark.parametrize("stage", ["mini", "tiny"])
def test_a_sidecar_that_keeps_the_gpu_of_a_committed_stage_is_ended_after_two_minutes(stage: str):
    plan = a_plan()
    planned = plan.stage(stage)
    assert planned is not None
    job = a_job(plan, stage, active=1)
    pod = a_pod(job, exit_code=0, message=a_commit(planned).to_json())
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = NOON
    pod["status"]["containerStatuses"].append({"name": "shipper", "state": {"running": {}}})
    noon = datetime.fromisoformat(NOON)

    before = committed_status(plan, *{"mini"} - {stage})
    committed = decide(plan, job, pods=(pod,), previous=before, now=noon + timedelta(minutes=2))
    early = decide(plan, job, pods=(pod,), previous=committed.status, now=noon + timedelta(minutes=1))
    late = decide(plan, job, pods=(pod,), previous=committed.status, now=noon + timedelta(minutes=2))

    assert (deleted(committed), committed.look_again_s) == ([], SOON_S), "status does not have the result yet"
    assert (deleted(early), early.look_again_s) == ([], 60)
    assert (deleted(late), entry(late, stage).phase) == ([job["metadata"]["name"]], "Committed")
    assert late.status.phase == ("Running" if stage == "mini" else "Succeeded")
    assert stalled(late).status == "False"


@pytest.mark.parametrize("exports", [False, True])
def test_a_committed_stage_gets_no_other_pod_after_its_sidecar_has_failed(exports: bool):
    """The next pod would need a GPU, and could only make an export that is missing."""
    plan = a_plan(template={"image": "trainer:1"} | ({"export": {"onnx": {}}} if exports else {}))
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, phase="Failed", exit_code=0, message=a_commit(plan.stages[0]).to_json())

    committed = decide(plan, job, pods=(pod,))
    decision = decide(plan, job, pods=(pod,), previous=committed.status)

    assert (deleted(committed), entry(committed, "mini").phase) == ([], "Committed")
    assert deleted(decision) == ([] if exports else [job["metadata"]["name"]])


def test_a_trainer_that_is_killed_after_the_commit_of_the_last_stage_gets_another_pod_for_the_report():
    plan = a_plan()
    last = plan.stages[-1]
    job = a_job(plan, last.name, active=1)
    pod = a_pod(job, phase="Failed", exit_code=137, message=a_commit(last).to_json())

    committed = decide(plan, job, pods=(pod,), previous=committed_status(plan, "mini"))
    decision = decide(plan, job, pods=(pod,), previous=committed.status)

    assert (entry(committed, last.name).phase, deleted(decision)) == ("Committed", [])
