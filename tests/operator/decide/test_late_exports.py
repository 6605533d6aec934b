"""What one reconcile decides about exports: a committed stage stays committed, whatever becomes of its export."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from chain_builders import IMAGE, NOON, a_commit, a_committed_job, a_job, a_plan, a_pod, retrying
from deciding import NOON as NOON_TIME
from deciding import committed_status, created, decide, entry
from distillchain_api.failures import FailureClass
from distillchain_operator.decide.actions import CreateJob, DeleteJob, SetSuspend, SetTtl
from distillchain_operator.decide.late_exports import refused_export
from distillchain_operator.decide.turns import Place
from distillchain_operator.jobs.labels import SUSPENDED_ANNOTATION
from distillchain_operator.status.chain_status import build_chain_status
from distillchain_operator.status.transitions import transitions
from exporting import EXPORTED, FAILURE, ONNX, ended, export_job, exports_ready, succeeded


def test_an_export_that_is_added_to_a_succeeded_chain_gets_a_job_that_does_not_train():
    plan, status = succeeded("mini")

    decision = decide(plan, previous=status)

    job = export_job(decision)
    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    order = next(json.loads(e["value"]) for e in trainer["env"] if e["name"] == "DISTILLCHAIN_WORK_ORDER")
    assert order["exportOnly"] is True
    assert decision.status.phase == "Succeeded"
    assert entry(decision, "mini").model_copy(update={"missing_export": None}) == status.stage_named("mini")
    assert exports_ready(decision.status).reason == "Exporting"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param({"answer": True}, id="its trainer reports the failure"),
        pytest.param({"answer": False, "condition": "Failed", "exit_code": 137, "reason": "OOMKilled"}, id="killed"),
    ],
)
def test_a_late_export_that_fails_leaves_chain_and_stage_as_they_were(end: dict[str, Any]):
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    answer = a_commit(plan.stages[0], reused=True).model_copy(update={"export_failure": FAILURE})
    job, pod = ended(export_job(started), **{**end, "answer": answer if end["answer"] else None})

    decision = decide(plan, job, pods=(pod,), previous=started.status)

    assert decision.actions == ()
    assert decision.status.phase == "Succeeded"
    assert decision.status.result == status.result
    kept = entry(decision, "mini").model_copy(update={"missing_export": None})
    assert kept == status.stage_named("mini")
    assert entry(decision, "mini").missing_export.phase == "Failed"
    assert (exports_ready(decision.status).status, exports_ready(decision.status).reason) == ("False", "ExportFailed")
    assert [event.reason for event in transitions(started.status, decision.status)] == ["ExportFailed"]
    again = decide(plan, job, pods=(pod,), previous=decision.status)
    assert again.status == decision.status


def test_a_late_export_that_is_made_is_in_the_entry_of_its_stage():
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    answer = a_commit(plan.stages[0], reused=True).model_copy(update={"exports": [EXPORTED]})
    job, pod = ended(export_job(started), answer=answer)

    decision = decide(plan, job, pods=(pod,), previous=started.status)

    assert [export.uri for export in entry(decision, "mini").exports] == [EXPORTED.uri]
    assert entry(decision, "mini").missing_export is None
    assert entry(decision, "mini").reused is False
    assert exports_ready(decision.status).status == "True"
    assert [event.reason for event in transitions(started.status, decision.status)] == ["StageExported"]


def test_a_stage_whose_own_trainer_fails_to_export_is_committed_and_the_next_one_starts():
    plan = a_plan(template=ONNX)
    job, pod = a_committed_job(plan, "mini")
    answer = a_commit(plan.stages[0]).model_copy(update={"export_failure": FAILURE})
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = answer.to_json()

    decision = decide(plan, job, pods=(pod,))

    assert entry(decision, "mini").phase == "Committed"
    assert entry(decision, "mini").missing_export.message == FAILURE.message
    assert created(decision) == ["tiny"]


def test_a_trainer_that_is_killed_while_it_exports_has_committed_its_stage():
    plan = a_plan(template=ONNX, stages=["mini"])
    job = a_job(plan, "mini", condition="Failed", reason="BackoffLimitExceeded", failed=1)
    message = a_commit(plan.stages[0]).to_json()
    pod = a_pod(job, phase="Failed", exit_code=137, reason="OOMKilled", message=message)

    decision = decide(plan, job, pods=(pod,))

    assert decision.status.phase == "Succeeded"
    assert entry(decision, "mini").missing_export.failure_class is FailureClass.OUT_OF_MEMORY


def test_stages_start_before_exports():
    status = committed_status(a_plan(), "mini")
    plan = a_plan(generation=2, template=ONNX)

    decision = decide(plan, previous=status)

    assert [(a.stage, a.is_export) for a in decision.actions if isinstance(a, CreateJob)] == [("tiny", False)]
    assert entry(decision, "mini").missing_export.phase == "Pending"


def test_a_failed_export_is_tried_again_when_the_user_retries_and_not_because_its_job_is_gone():
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    answer = a_commit(plan.stages[0], reused=True).model_copy(update={"export_failure": FAILURE})
    job, pod = ended(export_job(started), answer=answer)
    failed = decide(plan, job, pods=(pod,), previous=started.status)
    assert decide(plan, previous=failed.status).status == failed.status

    asked = decide(retrying(plan, "mini"), job, pods=(pod,), previous=failed.status)

    assert [a.name for a in asked.actions if isinstance(a, DeleteJob)] == [job["metadata"]["name"]]
    assert created(decide(retrying(plan, "mini"), previous=asked.status)) == ["mini"]
    assert created(decide(retrying(plan, "mini"), previous=failed.status)) == ["mini"], "its Job is gone already"


def test_an_upgrade_leaves_the_running_job_of_an_export_that_an_earlier_release_started():
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    job = export_job(started)
    earlier = f"{job['metadata']['name']}-of-an-earlier-release"
    job["metadata"] |= {"name": earlier, "annotations": {}}
    before = started.status.stages[0]
    assert before.missing_export is not None
    missing = before.missing_export.model_copy(update={"job": earlier})
    entries = [before.model_copy(update={"missing_export": missing})]

    decision = decide(plan, job, pods=(a_pod(job),), previous=started.status.model_copy(update={"stages": entries}))

    assert decision.actions == ()
    assert entry(decision, "mini").missing_export.job == earlier


def test_an_export_whose_answer_is_lost_is_made_again():
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    job, _ = ended(export_job(started), answer=None)

    decision = decide(plan, job, previous=started.status)

    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert entry(decision, "mini").phase == "Committed"


@pytest.mark.parametrize("end", ["no answer", "no export", "cut off", "in another cluster"])
def test_an_export_that_succeeds_without_a_result_fails_instead_of_being_made_again_for_ever(end: str):
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    job, pod = ended(export_job(started), answer=None if end == "no answer" else a_commit(plan.stages[0], reused=True))
    pods = (pod,)
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    if end == "cut off":
        terminated["message"] = terminated["message"][:300]
    if end == "in another cluster":
        job["spec"]["managedBy"], pods = "kueue.x-k8s.io/multikueue", ()

    decision = decide(plan, job, pods=pods, previous=started.status)

    assert decision.actions == ()
    assert entry(decision, "mini").missing_export.phase == "Failed"
    assert exports_ready(decision.status).message.endswith("to try again: distillchain retry")
    assert ("12 KiB" in exports_ready(decision.status).message) == (end == "cut off")


def test_the_job_of_a_failed_export_that_commits_its_stage_is_not_deleted_before_status_has_its_answer():
    """The answer of the stage's own Job was lost, and the status could not be written before."""
    plan = a_plan(stages=["mini"], template=ONNX)
    job = export_job(decide(plan, previous=committed_status(a_plan(stages=["mini"]), "mini")))
    answer = a_commit(plan.stages[0], reused=True).model_copy(update={"export_failure": FAILURE})
    pod = a_pod(job, phase="Succeeded", exit_code=0, message=answer.to_json())

    decision = decide(plan, job, pods=(pod,), previous=decide(plan).status)

    assert entry(decision, "mini").phase == "Committed"
    assert decision.actions == ()


@pytest.mark.parametrize("has_started", [True, False])
def test_an_edit_replaces_the_job_of_an_export_whose_pod_has_not_started(has_started: bool):
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    job = export_job(started)
    pod = a_pod(job, phase="Running" if has_started else "Pending")
    edited = a_plan(stages=["mini"], generation=3, template=ONNX | {"image": "registry.example/other:1"})

    decision = decide(edited, job, pods=(pod,), previous=started.status)

    deleted = [action.name for action in decision.actions if isinstance(action, DeleteJob)]
    assert deleted == ([] if has_started else [job["metadata"]["name"]])
    again = export_job(decide(edited, previous=decision.status))
    assert again["spec"]["template"]["spec"]["containers"][0]["image"] == "registry.example/other:1"


def test_a_suspended_export_does_not_run_and_goes_on_without_a_turn_when_it_is_resumed():
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    job = export_job(started)
    job["spec"]["suspend"] = True
    job["metadata"]["annotations"][SUSPENDED_ANNOTATION] = "true"
    suspended = decide(a_plan(stages=["mini"], generation=2, template=ONNX, suspend=True), job, previous=started.status)
    assert entry(suspended, "mini").missing_export.phase == "Pending"

    resumed = decide(plan, job, previous=suspended.status, turn=Place("ml", limit=1, is_free=False))

    assert resumed.actions == (SetSuspend(job["metadata"]["name"], job["metadata"]["uid"], suspend=False),)
    assert entry(resumed, "mini").missing_export.phase == "Running"


def test_an_export_whose_job_is_refused_leaves_its_stage_committed_and_lets_others_go_first():
    plan, status = succeeded("mini", "tiny")
    decision = decide(plan, previous=status)
    assert created(decision) == ["mini"]
    refusal = {"phase": "Failed", "job": None, "message": "no", "failure_class": FailureClass.POD_REJECTED}
    changes = refused_export(plan, "mini", refusal)
    stages = [e.model_copy(update=changes if e.name == "mini" else {}) for e in decision.status.stages]

    later = decide(plan, previous=decision.status.model_copy(update={"stages": stages}))

    assert stages[0].phase == "Committed"
    assert created(later) == ["tiny"]


def test_two_refused_exports_do_not_take_turns_in_the_status():
    """Each change of the status is an event, so the operator would look again and again."""
    plan, status = succeeded("mini", "tiny")
    refusal = {"phase": "Failed", "job": None, "message": "no", "failure_class": FailureClass.POD_REJECTED}
    for _ in range(3):
        decision = decide(plan, previous=status)
        (name,) = created(decision)
        changes = refused_export(plan, name, refusal)
        stages = [e.model_copy(update=changes if e.name == name else {}) for e in decision.status.stages]
        before, status = status, decision.status.model_copy(update={"stages": stages})

    assert status.stages == before.stages
    assert [e.missing_export and e.missing_export.phase for e in status.stages] == ["Failed", "Failed"]


def test_a_suspended_chain_starts_no_export():
    _, status = succeeded("mini")
    plan = a_plan(stages=["mini"], generation=2, template=ONNX, suspend=True)

    decision = decide(plan, previous=status)

    assert created(decision) == []
    assert decision.status.phase == "Succeeded"


FINE_TUNED = {"model": "hf://org/teacher", "fineTune": {}}


@pytest.mark.parametrize("own, want", [({}, None), ({"export": {"onnx": {"quantize": "int8"}}}, "onnx-int8")])
def test_the_export_of_a_fine_tuned_teacher_is_its_own_and_not_that_of_the_template(
    own: dict[str, Any], want: str | None
):
    plan = a_plan(template=ONNX, teacher=FINE_TUNED | own, stages=["mini"])

    assert [stage.work_order.export.name for stage in plan.stages] == [want, "onnx"]


def test_the_late_export_of_a_fine_tuned_teacher_fails_and_succeeds_after_a_retry():
    status = committed_status(a_plan(teacher=FINE_TUNED, stages=["mini"]), "teacher", "mini")
    plan = a_plan(generation=2, teacher=FINE_TUNED | {"export": {"onnx": {}}}, stages=["mini"])
    commit = a_commit(plan.stages[0], reused=True)

    started = decide(plan, previous=status)
    failed_job, failed_pod = ended(export_job(started), answer=commit.model_copy(update={"export_failure": FAILURE}))
    failed = decide(plan, failed_job, pods=(failed_pod,), previous=started.status)

    assert (created(started), exports_ready(started.status).reason) == (["teacher"], "Exporting")
    assert failed.status.phase == "Succeeded"
    assert exports_ready(failed.status).message.startswith("teacher: ")
    again = decide(retrying(plan, "teacher"), previous=failed.status)
    job, pod = ended(export_job(again), answer=commit.model_copy(update={"exports": [EXPORTED]}))
    made = decide(retrying(plan, "teacher"), job, pods=(pod,), previous=again.status)
    assert exports_ready(made.status).reason == "Exported"
    assert [export.uri for export in entry(made, "teacher").exports] == [EXPORTED.uri]
    assert made.status.stages[1:] == status.stages[1:]


def test_the_job_of_a_late_export_expires_only_when_its_result_is_in_status():
    status = committed_status(a_plan(stages=["mini"]), "mini")
    plan = a_plan(stages=["mini"], generation=2, template=ONNX | {"ttlAfterFinished": "1h"})
    started = decide(plan, previous=status)
    answer = a_commit(plan.stages[0], reused=True).model_copy(update={"exports": [EXPORTED]})
    job, pod = ended(export_job(started), answer=answer)

    first = decide(plan, job, pods=(pod,), previous=started.status)
    second = decide(plan, job, pods=(pod,), previous=first.status)

    assert (first.actions, first.look_again_s) == ((), 0.1)
    assert second.actions == (SetTtl(job["metadata"]["name"], job["metadata"]["uid"], 3600),)


def test_a_late_export_whose_pod_waits_too_long_is_deleted_and_created_again_after_a_pause():
    status = committed_status(a_plan(stages=["mini"]), "mini")
    plan = a_plan(stages=["mini"], generation=2, template=ONNX | {"pendingDeadline": "10m"})
    started = decide(plan, previous=status)
    job = export_job(started)
    pod = a_pod(job, phase="Pending")

    waiting = decide(plan, job, pods=(pod,), previous=started.status, now=NOON_TIME + timedelta(minutes=4))
    assert waiting.look_again_s == 360
    decision = decide(plan, job, pods=(pod,), previous=started.status, now=NOON_TIME + timedelta(minutes=10))

    assert [type(action) for action in decision.actions] == [DeleteJob]
    missing = entry(decision, "mini").missing_export
    assert (missing.phase, missing.pauses) == ("Pending", 1)
    assert missing.message.startswith("its pod did not start within the pendingDeadline of 600 s")
    assert decision.status.phase == "Succeeded"
    assert [event.reason for event in transitions(started.status, decision.status)] == ["ExportPaused"]
    early = decide(plan, previous=decision.status, now=NOON_TIME + timedelta(minutes=10))
    assert (created(early), early.status) == ([], decision.status)
    assert 0 < (early.look_again_s or 0) <= 60
    later = decide(plan, previous=decision.status, now=NOON_TIME + timedelta(minutes=12))
    assert created(later) == ["mini"]
    assert entry(later, "mini").missing_export.pauses == 1


def test_a_late_export_whose_pods_are_evicted_again_and_again_is_paused():
    plan, status = succeeded("mini")
    started = decide(plan, previous=status)
    job = export_job(started)
    evicted = [a_pod(job, phase="Failed", exit_code=75, number=number) for number in range(6)]

    decision = decide(plan, job, pods=tuple(evicted), previous=started.status)

    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert entry(decision, "mini").missing_export.next_start_at
    refused = decide(plan, job, pods=tuple(evicted), previous=decision.status, now=NOON_TIME + timedelta(seconds=1))
    assert (refused.actions, refused.status) == (decision.actions, decision.status), "the Job could not be deleted"


def test_the_condition_advises_a_retry_only_of_an_export_that_has_a_job():
    plan, status = succeeded("mini")
    decision = decide(plan, previous=status)
    refusal = {"phase": "Failed", "job": None, "message": "no", "failure_class": FailureClass.POD_REJECTED}
    stages = [e.model_copy(update=refused_export(plan, "mini", refusal)) for e in decision.status.stages]

    refused = build_chain_status(plan, stages, previous=status, now=NOON_TIME)

    assert exports_ready(refused).message == "mini: no"


def test_a_service_that_is_refused_after_the_commit_does_not_stall_the_chain():
    """The Job has no Complete condition yet, so its group is open."""
    plan = a_plan(stages=["mini"], template={"image": IMAGE, "parallelism": {"nodes": 2}})
    job, pod = a_committed_job(plan, "mini")
    job["status"] = {"startTime": NOON, "active": 1}

    assert decide(plan, job, pods=(pod,), parts=False).actions == ()
