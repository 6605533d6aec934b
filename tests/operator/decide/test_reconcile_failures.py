"""What one reconcile decides about failures, evictions, lost nodes and damaged checkpoints."""

from __future__ import annotations

from datetime import timedelta

import pytest

from chain_builders import (
    CHAIN_UID,
    IMAGE,
    a_commit,
    a_committed_job,
    a_failure,
    a_job,
    a_plan,
    a_pod,
    retrying,
)
from deciding import NOON, a_failed_job, committed_status, created, decide, entry, stalled
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator.decide.actions import DeleteJob, NotePods
from distillchain_operator.decide.reconcile import reconcile
from distillchain_operator.jobs.labels import PODS_ANNOTATION
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.jobs.stage_job import JobDefaults
from distillchain_operator.jobs.wanted_jobs import WantedJobs
from distillchain_operator.status.transitions import transitions


def test_another_default_image_does_not_retry_a_failed_stage():
    plan = a_plan(template={})
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID, image=IMAGE)
    failed = decide(plan, job, pods=(pod,), image=IMAGE).status
    decision = decide(plan, job, pods=(pod,), previous=failed, image="registry.example/newer:2")
    assert decision.actions == ()
    assert decision.status == failed

    edited = a_plan(template={"retries": 1}, generation=2)
    assert created(decide(edited, job, pods=(pod,), previous=failed, image="registry.example/newer:2")) == ["mini"]


def test_retrying_a_stage_that_found_its_teacher_damaged_runs_the_teachers_stage_again():
    plan = a_plan()
    old_job, old_pod = a_committed_job(plan, "mini")
    job, pod = a_failed_job(plan, "tiny", FailureClass.CHECKPOINT_CORRUPT)
    failed = decide(plan, old_job, job, pods=(old_pod, pod), previous=committed_status(plan, "mini")).status
    assert failed.phase == "Failed"

    plan = retrying(plan, "tiny")
    retried = decide(plan, old_job, job, pods=(old_pod, pod), previous=failed)
    names = [a.name for a in retried.actions if isinstance(a, DeleteJob)]
    assert names == [old_job["metadata"]["name"], job["metadata"]["name"]]
    assert created(retried) == []

    # Killed before the status was written, and the Job still exists: the status is not trusted, and no Job is created.
    old_job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:05Z"
    assert created(decide(plan, old_job, pods=(old_pod,), previous=failed)) == []
    assert entry(decide(plan, old_job, pods=(old_pod,), previous=retried.status), "mini").phase == "Pending"

    again = decide(plan, previous=retried.status)
    assert created(again) == ["mini"]
    new_job, new_pod = a_committed_job(plan, "mini")
    new_job["metadata"] |= {"uid": "another", "creationTimestamp": "2026-01-01T13:00:00Z"}
    new_pod["metadata"]["ownerReferences"][0]["uid"] = "another"
    for previous in (again.status, failed):  # also when no status was written in between
        assert created(decide(plan, new_job, pods=(new_pod,), previous=previous)) == ["tiny"]


def test_a_commit_counts_even_if_the_pod_or_its_job_fails_afterwards():
    plan = a_plan()
    job = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded", failed=1)
    pod = a_pod(job, phase="Failed", exit_code=0, message=a_commit(plan.stages[0]).to_json())
    assert created(decide(plan, job, pods=(pod,))) == ["tiny"]

    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, exit_code=0, message=a_commit(plan.stages[0]).to_json())
    pod["status"]["containerStatuses"].append({"name": "shipper", "state": {"running": {}}})
    decision = decide(plan, job, pods=(pod,))
    assert entry(decision, "mini").phase == "Committed"
    assert created(decision) == []
    assert "container shipper of pod" in entry(decision, "tiny").message


@pytest.mark.parametrize(
    "crashed, want",
    [
        pytest.param(False, "running mini: attempt 3", id="evicted twice"),
        pytest.param(
            True,
            "running mini: attempt 3, 1 of 4 allowed crashes used: "
            "pod {first} ended with exit code 1; see kubectl logs {first}",
            id="crashed, then evicted",
        ),
    ],
)
def test_the_message_of_an_evicted_stage_has_the_number_of_attempts_and_the_kubelets_last_reason(
    crashed: bool, want: str
):
    plan = a_plan()
    job = a_job(plan, "mini", active=1, failed=int(crashed))
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
    low = {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
    evicted = [a_pod(job, phase="Failed", exit_code=137, number=n, conditions=conditions) for n in (0, 1)]
    for pod in evicted:
        pod["status"] |= low
    if crashed:
        evicted[0] = a_pod(job, phase="Failed", exit_code=1)
    decision = decide(plan, job, pods=(*evicted, a_pod(job, number=2)))
    why = "the last pod was evicted from node node-7: Evicted: The node was low on resource: ephemeral-storage."
    assert decision.status.message == f"{want.format(first=evicted[0]['metadata']['name'])}; {why}"


LOST = (
    "node node-7 does not confirm that pod {pod} has stopped; if the machine is off: kubectl taint nodes node-7 "
    "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or kubectl delete pod {pod} --force"
)


@pytest.mark.parametrize(
    "suspend, was_edited, want_before",
    [
        pytest.param(False, False, "running mini: pod {pod} is stopping", id="evicted by the taint manager"),
        pytest.param(True, False, "stopping mini: its state is being saved", id="suspended"),
        pytest.param(
            False,
            True,
            "mini: waiting for the pods of Job {job} to terminate: pod {pod} is stopping",
            id="replaced after an edit",
        ),
    ],
)
def test_a_pod_whose_end_its_node_does_not_confirm_in_time_stalls_the_chain(
    suspend: bool, was_edited: bool, want_before: str
):
    job = a_job(a_plan(), "mini", active=1, suspended=suspend)
    plan = a_plan(suspend=suspend, template={"image": IMAGE, "training": {"epochs": 9 if was_edited else 3}})
    if was_edited:
        job["metadata"]["deletionTimestamp"] = "2026-01-01T11:58:00Z"
    else:
        job = a_job(plan, "mini", active=1, suspended=suspend)
    pod = a_pod(job)
    names = {"pod": pod["metadata"]["name"], "job": job["metadata"]["name"]}

    pod["metadata"]["deletionTimestamp"] = "2026-01-01T11:58:00Z"
    decision = decide(plan, job, pods=(pod,))
    assert (stalled(decision).status, decision.status.message) == ("False", want_before.format_map(names))
    assert decision.look_again_s == 60

    pod["metadata"]["deletionTimestamp"] = "2026-01-01T11:57:00Z"
    decision = decide(plan, job, pods=(pod,))
    assert created(decision) == []
    assert (stalled(decision).status, stalled(decision).reason) == ("True", "PodRejected")
    assert (decision.status.message or "").endswith(LOST.format_map(names))
    assert decision.status.phase == ("Suspended" if suspend else "Pending" if was_edited else "Running")
    assert decision.look_again_s is None


@pytest.mark.parametrize("has_pod", [False, True])
def test_a_stage_whose_pod_does_not_start_says_after_two_minutes_how_to_see_why(has_pod: bool):
    # A policy may refuse the pods of the Job controller and not the operator's dry run. Only the Job's Events say so.
    plan = a_plan()
    job = a_job(plan, "mini", active=int(has_pod))
    pods = (a_pod(job, phase="Pending"),) if has_pod else ()

    early = decide(plan, job, pods=pods, now=NOON + timedelta(seconds=30))
    assert ("to see why" in entry(early, "mini").message, early.look_again_s) == (False, 90)
    late = decide(plan, job, pods=pods, previous=early.status, now=NOON + timedelta(minutes=2))
    assert (f"describe {'pod' if has_pod else 'job'}" in entry(late, "mini").message, late.look_again_s) == (True, None)


def test_the_reason_of_a_failure_is_kept_when_the_pod_that_reported_it_is_deleted():
    plan = a_plan()
    job, reporting = a_failed_job(plan, "mini", FailureClass.GATE_NOT_MET)
    earlier = a_pod(job, phase="Failed", exit_code=1, number=1)
    earlier["metadata"]["creationTimestamp"] = "2026-01-01T11:00:00Z"
    failed = decide(plan, job, pods=(earlier, reporting)).status
    assert failed.stages[0].failure_class is FailureClass.GATE_NOT_MET
    assert decide(plan, job, pods=(earlier,), previous=failed).status == failed


def test_a_commit_that_is_read_after_the_failure_of_its_job_replaces_the_failure():
    plan = a_plan()
    job = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded", failed=1)
    failed = decide(plan, job).status
    pod = a_pod(job, phase="Failed", exit_code=0, message=a_commit(plan.stages[0]).to_json())
    assert entry(decide(plan, job, pods=(pod,), previous=failed), "mini").phase == "Committed"


def test_the_message_of_a_timeout_before_training_does_not_change_at_the_next_reconcile():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, phase="Pending")
    waiting = decide(plan, job, pods=(pod,)).status
    over = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded")
    failed = decide(plan, over, pods=(pod,), previous=waiting).status
    assert "training did not start" in (failed.message or "")
    assert decide(plan, over, pods=(pod,), previous=failed).status == failed


SHIPPER_WAITS = {"name": "shipper", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}


def test_a_sidecar_that_cannot_start_is_named_and_does_not_stall_a_running_trainer():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job)
    pod["status"]["containerStatuses"].append(SHIPPER_WAITS)
    decision = decide(plan, job, pods=(pod,))
    name = pod["metadata"]["name"]
    want = f"running mini: container shipper of pod {name} cannot start: ImagePullBackOff: no such image"
    assert decision.status.message == want
    assert stalled(decision).status == "False"


@pytest.mark.parametrize("exit_code", [pytest.param(0, id="committed"), pytest.param(1, id="crashed")])
def test_a_sidecar_that_cannot_start_stalls_the_chain_after_the_trainer_has_finished(exit_code: int):
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, exit_code=exit_code, message=a_commit(plan.stages[0]).to_json())
    pod["status"]["containerStatuses"].append(SHIPPER_WAITS)
    decision = decide(plan, job, pods=(pod,))
    assert created(decision) == []
    assert (stalled(decision).status, stalled(decision).reason) == ("True", "PodRejected")
    want = f"container shipper of pod {pod['metadata']['name']} cannot start: ImagePullBackOff: no such image"
    assert stalled(decision).message.endswith(f"the trainer has finished, but {want}")


def test_a_stage_that_timed_out_keeps_its_last_progress():
    """The Job controller has deleted its pods, and their logs with them."""
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    line = Progress(stage="mini", phase="Train", step=90, of=100)
    running = decide(plan, job, pods=(a_pod(job),), progress=line).status
    over = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded", failed=1)
    failed = entry(decide(plan, over, previous=running), "mini")
    assert failed.failure_class is FailureClass.DEADLINE_EXCEEDED
    assert failed.progress is not None
    assert (failed.progress.step, failed.progress.of) == (90, 100)


def test_a_failed_job_fails_the_chain_with_the_trainers_message_until_the_user_retries():
    plan = a_plan()
    stage = plan.stages[0]
    job = a_job(plan, "mini", condition="Failed", reason="PodFailurePolicy", failed=1)
    answer = a_failure(stage, FailureClass.DATA_INVALID, "train.tsv:7: 3 columns, expected 2")
    decision = decide(plan, job, pods=(a_pod(job, phase="Failed", exit_code=65, message=answer.to_json()),))
    assert decision.actions == ()
    assert decision.status.phase == "Failed"
    assert decision.status.message == "mini: train.tsv:7: 3 columns, expected 2"
    assert [e.reason for e in transitions(ChainStatus(), decision.status)] == ["StageFailed"]
    failed = decision.status
    for jobs in ([job], []):  # its pod, and then its Job was deleted
        later = decide(plan, *jobs, previous=failed)
        assert (later.status, later.actions) == (failed, ())

    retried = retrying(plan, "mini")
    asked = decide(retried, job, previous=failed)
    assert [action.name for action in asked.actions if isinstance(action, DeleteJob)] == [job["metadata"]["name"]]
    assert created(decide(retried, previous=asked.status)) == ["mini"]
    assert created(decide(retried, previous=failed)) == ["mini"], "killed before the status was written"
    again = failed.model_copy(update={"handled_retry": asked.status.handled_retry})
    assert created(decide(retried, previous=again)) == [], "a request is handled once"
    assert created(decide(retrying(plan, "mini", token="2"), previous=again)) == ["mini"]


def test_a_succeeded_job_whose_pod_was_deleted_is_run_again():
    plan = a_plan()
    job, _ = a_committed_job(plan, "mini")
    decision = decide(plan, job)
    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert entry(decision, "mini").phase == "Pending"


def test_a_job_that_succeeds_without_an_answer_fails_its_stage():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "hello"
    decision = decide(plan, job, pods=(pod,))
    assert entry(decision, "mini").phase == "Failed"
    assert "use the trainer image of this release" in entry(decision, "mini").message


def test_a_result_whose_warnings_the_kubelet_has_cut_commits_its_stage():
    plan = a_plan(stages=["mini"])
    job, pod = a_committed_job(plan, "mini")
    answer = a_commit(plan.stages[0]).model_copy(update={"warnings": ["the validation split is small"] * 99})
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    terminated["message"] = answer.to_json()[: 12 * 1024 // 4]  # with four containers

    decision = decide(plan, job, pods=(pod,))

    assert decision.status.phase == "Succeeded"
    terminated["message"] = answer.to_json()[:300]
    assert "the kubelet has cut its result off" in entry(decide(plan, job, pods=(pod,)), "mini").message


def test_a_chain_without_any_image_fails_with_the_field():
    plan = a_plan(template={})
    decision = decide(plan)
    assert "spec.template.image: missing" in entry(decision, "mini").message
    assert created(decide(plan, image=IMAGE)) == ["mini"]


def test_an_evicted_and_deleted_pod_counts_as_an_attempt():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    observed = observe(chain_uid=CHAIN_UID, jobs=[job], pods=[a_pod(job, number=0)])
    decision = reconcile(plan, observed, previous=ChainStatus(), now=NOON, wanted=WantedJobs(plan, JobDefaults()))
    assert (decision.actions, entry(decision, "mini").pod_uid) == ((), "pod-0")

    observed = observe(chain_uid=CHAIN_UID, jobs=[job], pods=[a_pod(job, number=1)])
    decision = reconcile(plan, observed, previous=decision.status, now=NOON, wanted=WantedJobs(plan, JobDefaults()))
    assert (entry(decision, "mini").attempt, entry(decision, "mini").pod_uid) == (2, "pod-1")
    assert decision.actions == (NotePods(job["metadata"]["name"], job["metadata"]["uid"], ("pod-0", "pod-1")),)

    job["metadata"]["annotations"] = {PODS_ANNOTATION: "pod-0,pod-1"}
    observed = observe(chain_uid=CHAIN_UID, jobs=[job], pods=[])
    decision = reconcile(plan, observed, previous=decision.status, now=NOON, wanted=WantedJobs(plan, JobDefaults()))
    assert (decision.actions, entry(decision, "mini").pod_uid) == ((), "pod-1")


def test_pods_of_an_earlier_job_of_the_same_name_do_not_count():
    plan = a_plan()
    old, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID)
    new = a_job(plan, "mini", active=1)
    new["metadata"] |= {"uid": "another", "annotations": {}, "creationTimestamp": "2026-01-01T13:00:00Z"}
    decision = decide(plan, new, pods=(pod,), previous=decide(plan, old, pods=(pod,)).status)
    assert decision.actions == ()
    assert (entry(decision, "mini").phase, entry(decision, "mini").attempt) == ("Running", 1)


@pytest.mark.parametrize(
    "stages, committed_too, want",
    [
        (["mni", "mini", "tiny"], False, ["retry: no failure of stage mni, tiny; failed: mini"]),
        (["mni", "mini", "tiny"], True, ["retry: the chain has no stage mni; failed: mini"]),
        (["mini"], False, []),
    ],
)
def test_a_request_for_a_stage_that_has_not_failed_is_an_event_with_the_stages_that_have(
    stages: list[str], committed_too: bool, want: list[str]
):
    plan = a_plan()
    job, pod = a_failed_job(plan, "mini", FailureClass.DATA_INVALID)
    failed = decide(plan, job, pods=(pod,)).status
    request = retrying(plan, *stages, committed_too=committed_too)
    handled = decide(request, job, pods=(pod,), previous=failed).status
    ignored = [event for event in transitions(failed, handled) if event.reason == "RetryIgnored"]
    assert [(event.type, event.message) for event in ignored] == [("Warning", message) for message in want]
    assert not [event for event in transitions(handled, handled) if event.reason == "RetryIgnored"]
