"""What one look decides, by table; and any order of events and crashes, by hypothesis."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain_builders import (
    CHAIN_UID,
    IMAGE,
    a_chain,
    a_commit,
    a_committed_job,
    a_failure,
    a_job,
    a_plan,
    a_pod,
)
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator.jobs import JobDefaults
from distillchain_operator.labels import PODS_ANNOTATION
from distillchain_operator.observed import Observed, observe
from distillchain_operator.reconcile import (
    Action,
    CreateJob,
    Decision,
    DeleteJob,
    NotePods,
    SetSuspend,
    reconcile,
    running_pod,
)
from distillchain_operator.transitions import transitions

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TIGHT = {"model": "hf://org/teacher", "gate": {"minMetric": 0.95}}


def look(
    plan: Plan,
    *jobs: dict[str, Any],
    pods: tuple[dict[str, Any], ...] = (),
    previous: ChainStatus | None = None,
    image: str | None = None,
    progress: Progress | None = None,
) -> Decision:
    """One look at Jobs whose pods were noted already; that noting has its own test."""
    for job in jobs:
        own = [p for p in pods if p["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job["metadata"]["name"]]
        noted = job["metadata"].setdefault("annotations", {})
        noted.setdefault(PODS_ANNOTATION, ",".join(p["metadata"]["uid"][:8] for p in own))
    observed = observe(chain_uid=CHAIN_UID, jobs=jobs, pods=pods)
    defaults = JobDefaults(image)
    return reconcile(plan, observed, previous=previous or ChainStatus(), now=NOON, defaults=defaults, progress=progress)


def created(decision: Decision) -> list[str]:
    return [action.stage for action in decision.actions if isinstance(action, CreateJob)]


def entry(decision: Decision, stage: str) -> Any:
    return decision.status.stage_named(stage)


def committed_status(plan: Plan, *stages: str, **commit: Any) -> ChainStatus:
    """The status after these stages were committed by their Jobs."""
    status = ChainStatus()
    jobs, pods = [], []
    for stage in stages:
        job, pod = a_committed_job(plan, stage, **commit)
        jobs.append(job)
        pods.append(pod)
        status = look(plan, *jobs, pods=tuple(pods), previous=status).status
    return status


def test_a_new_chain_starts_its_first_stage_and_no_other():
    decision = look(a_plan())
    assert created(decision) == ["mini"]
    assert (entry(decision, "mini").phase, entry(decision, "tiny").phase) == ("Running", "Pending")
    assert decision.status.stage == "0/2"


def test_a_stage_waits_until_its_teacher_is_committed():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    decision = look(plan, job, pods=(a_pod(job),))
    assert decision.actions == ()
    assert entry(decision, "tiny").message == "waiting for mini to commit"


def test_a_succeeded_jobs_answer_commits_its_stage_and_starts_the_next():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini", accuracy=0.88)
    decision = look(plan, job, pods=(pod,))
    assert created(decision) == ["tiny"]
    assert entry(decision, "mini").phase == "Committed"
    assert decision.status.metric == "0.8800"
    assert [e.reason for e in transitions(ChainStatus(), decision.status)] == ["StageCommitted", "StageStarted"]


@pytest.mark.parametrize(
    "attempt, reused",
    [
        pytest.param("0123abcd-0000-4000-8000-000000000000-5f3a9c", False, id="an earlier pod of the same Job"),
        pytest.param("fedcba98-0000-4000-8000-000000000000-5f3a9c", True, id="somebody else"),
    ],
)
def test_a_commit_of_the_jobs_own_earlier_pod_is_not_told_as_reused(attempt: str, reused: bool):
    """It was lost with its node before it was heard; the pod that came after it only found the commit."""
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini", reused=True, attempt=attempt)
    job["metadata"]["annotations"] = {PODS_ANNOTATION: f"0123abcd,{pod['metadata']['uid'][:8]}"}

    assert entry(look(plan, job, pods=(pod,)), "mini").reused is reused


def test_what_status_says_is_committed_stays_so_when_its_job_is_gone():
    plan = a_plan()
    decision = look(plan, previous=committed_status(plan, "mini", "tiny"))
    assert decision.actions == ()
    assert decision.status.phase == "Succeeded"


def test_a_second_look_at_the_same_changes_nothing():
    plan = a_plan()
    first = look(plan, previous=committed_status(plan, "mini"))
    again = reconcile(plan, Observed(), previous=first.status, now=datetime(2027, 1, 1, tzinfo=UTC))
    assert again.status == first.status


@pytest.mark.parametrize(
    "stage, change, want_started",
    [
        pytest.param("mini", {"training": {"epochs": 9}}, "mini", id="the first"),
        pytest.param("tiny", {"training": {"epochs": 9}}, "tiny", id="the second"),
        pytest.param("tiny", {"image": "registry.example/other:1"}, None, id="only where the second runs"),
        pytest.param("tiny", {"gate": {"minMetric": 0.7}}, None, id="a gate that is met"),
        pytest.param("tiny", {"gate": {"minMetric": 0.99}}, "tiny", id="a gate that is not met"),
        pytest.param("tiny", {"gate": {"maxDrop": 0.01}}, "tiny", id="a drop that is too large"),
        pytest.param("mini", {"gate": {"minMetric": 0.85}}, "mini", id="a gate within rounding: the trainer decides"),
    ],
)
def test_an_edit_of_a_succeeded_chain_runs_the_edited_stage_again(
    stage: str, change: dict[str, Any], want_started: str | None
):
    status = committed_status(a_plan(), "mini", "tiny", accuracy=0.85)
    stages = [{"name": name, "student": {"model": f"hf://org/{name}"}} for name in ("mini", "tiny")]
    edited = [entry | change if entry["name"] == stage else entry for entry in stages]
    decision = look(
        build_plan(a_chain(generation=2).model_copy(update={"spec": a_chain_spec(edited)})), previous=status
    )
    assert created(decision) == ([want_started] if want_started else [])


def a_chain_spec(stages: list[dict[str, Any]]) -> Any:
    from chain_builders import a_document
    from distillchain_api.resource.spec import parse_chain

    document = a_document()
    document["spec"]["stages"] = stages
    return parse_chain(document).spec


def test_a_tighter_gate_of_the_root_teacher_runs_the_first_stage_again():
    status = committed_status(a_plan(), "mini", "tiny", teacher_accuracy=0.92)
    tight = a_plan(generation=2, teacher=TIGHT)
    decision = look(tight, previous=status)
    assert created(decision) == ["mini"]
    assert entry(decision, "tiny").phase == "Committed"


def test_a_running_job_of_an_outdated_stage_is_deleted_and_nothing_starts_until_its_pods_are_gone():
    old, new = a_plan(), a_plan(template={"image": IMAGE, "training": {"epochs": 9}})
    job = a_job(old, "mini", active=1)
    decision = look(new, job, pods=(a_pod(job),))
    assert [type(action) for action in decision.actions] == [DeleteJob]
    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:05Z"
    decision = look(new, job, pods=(a_pod(job),))
    assert decision.actions == ()
    assert "to be gone" in entry(decision, "mini").message
    assert created(look(new, pods=(a_pod(job),))) == []  # the Job is gone, its pod not yet
    assert created(look(new)) == ["mini"]


def test_a_running_job_that_differs_only_in_where_it_runs_is_left_to_end():
    old, new = a_plan(), a_plan(template={"image": "registry.example/other:1"})
    job = a_job(old, "mini", active=1)
    decision = look(new, job, pods=(a_pod(job),))
    assert decision.actions == ()
    assert entry(decision, "mini").job == job["metadata"]["name"]


@pytest.mark.parametrize(
    "phase, suspended, failed",
    [
        pytest.param("Pending", False, 0, id="its pod waits for a node, an image or a Secret"),
        pytest.param("Failed", False, 1, id="its pod crashed, the next is not made yet"),
        pytest.param("Failed", True, 0, id="it is suspended"),
    ],
)
def test_a_job_whose_pod_has_not_started_gives_way_to_an_edit(phase: str, suspended: bool, failed: int):
    old, new = a_plan(), a_plan(template={"image": "registry.example/other:1"})
    job = a_job(old, "mini", active=1, failed=failed, suspended=suspended)
    decision = look(new, job, pods=(a_pod(job, phase=phase, exit_code=137 if failed else None),))
    deleted = [action.name for action in decision.actions if isinstance(action, DeleteJob)]
    assert deleted == [job["metadata"]["name"]]
    assert created(decision) == []
    assert created(look(new)) == ["mini"]


def test_a_job_whose_pod_has_succeeded_is_not_replaced_before_the_job_controller_looked():
    old, new = a_plan(), a_plan(template={"image": "registry.example/other:1"})
    job = a_job(old, "mini", active=1)
    decision = look(new, job, pods=(a_pod(job, phase="Succeeded", exit_code=0),))
    assert decision.actions == ()


def test_suspend_reaches_a_later_stage_that_still_runs():
    loose = a_plan()
    tight = a_plan(generation=2, teacher=TIGHT, suspend=True)
    job = a_job(loose, "tiny", active=1)
    decision = look(tight, job, pods=(a_pod(job),), previous=committed_status(loose, "mini"))
    assert decision.actions == (SetSuspend(job["metadata"]["name"], job["metadata"]["uid"], True),)


def test_a_later_stage_that_runs_is_left_to_end_when_an_earlier_gate_is_tightened():
    loose, tight = a_plan(), a_plan(generation=2, teacher=TIGHT)
    job = a_job(loose, "tiny", active=1)
    decision = look(tight, job, pods=(a_pod(job),), previous=committed_status(loose, "mini"))
    assert decision.actions == ()
    assert entry(decision, "mini").message.startswith("waiting for Job relay-tiny-")


def test_a_suspended_job_whose_pod_has_not_started_goes_away():
    """Kubernetes counts a pod that is stopped before it ran as a crash: with `retries: 0` the chain would fail."""
    running, suspended = a_plan(), a_plan(suspend=True)
    job = a_job(running, "mini", active=1)
    decision = look(suspended, job, pods=(a_pod(job, phase="Pending"),))
    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert decision.status.phase == "Suspended"
    assert created(look(running, previous=decision.status)) == ["mini"]


def test_a_later_stage_that_runs_while_an_earlier_gate_is_asked_again_is_shown_running():
    loose, tight = a_plan(), a_plan(generation=2, teacher=TIGHT)
    job = a_job(loose, "tiny", active=1)
    decision = look(tight, job, pods=(a_pod(job),), previous=committed_status(loose, "mini"))
    assert (entry(decision, "tiny").phase, entry(decision, "tiny").job) == ("Running", job["metadata"]["name"])
    assert decision.status.phase == "Running"
    assert decision.status.message.startswith("running tiny")


def a_failed_stage(plan: Plan, stage: str, failure_class: FailureClass, **job: Any) -> Any:
    planned = plan.stage(stage)
    assert planned is not None
    failed = a_job(plan, stage, condition="Failed", reason="PodFailurePolicy", failed=1, **job)
    message = a_failure(planned, failure_class, "it failed").to_json()
    return failed, a_pod(failed, phase="Failed", exit_code=66, message=message)


def test_an_operator_with_another_default_image_does_not_try_a_failed_stage_again():
    plan = a_plan(template={})
    job, pod = a_failed_stage(plan, "mini", FailureClass.DATA_INVALID, image=IMAGE)
    failed = look(plan, job, pods=(pod,), image=IMAGE).status
    decision = look(plan, job, pods=(pod,), previous=failed, image="registry.example/newer:2")
    assert decision.actions == ()
    assert decision.status == failed

    edited = a_plan(template={}, generation=2)
    assert created(look(edited, job, pods=(pod,), previous=failed, image="registry.example/newer:2")) == ["mini"]


def test_an_operator_with_another_default_image_does_not_ask_again_for_what_is_committed_at_its_very_gate():
    """Status has four decimals: whether the gate is met beyond rounding it cannot tell."""
    gates = {"template": {}, "teacher": {"model": "hf://org/teacher", "gate": {"minMetric": 0.92}}}
    plan = a_plan(**gates)
    job, pod = a_committed_job(plan, "mini", image=IMAGE)
    status = look(plan, job, pods=(pod,), image=IMAGE).status
    assert created(look(plan, previous=status, image="registry.example/newer:2")) == ["tiny"]

    edited = a_plan(**gates, generation=2)
    assert created(look(edited, previous=status, image="registry.example/newer:2")) == ["mini"]


def test_gates_of_two_stages_tightened_by_one_edit_are_both_asked_again():
    status = committed_status(a_plan(), "mini", "tiny", accuracy=0.85)
    stages = [
        {"name": name, "student": {"model": f"hf://org/{name}"}, "gate": {"minMetric": 0.85}}
        for name in ("mini", "tiny")
    ]
    edited = build_plan(a_chain(generation=2).model_copy(update={"spec": a_chain_spec(stages)}))
    first = look(edited, previous=status)
    assert created(first) == ["mini"]
    job, pod = a_committed_job(edited, "mini", accuracy=0.8501)
    assert created(look(edited, job, pods=(pod,), previous=first.status)) == ["tiny"]


def test_a_stage_whose_checkpoint_its_student_found_damaged_is_asked_again_when_that_is_retried():
    plan = a_plan()
    old_job, old_pod = a_committed_job(plan, "mini")
    job, pod = a_failed_stage(plan, "tiny", FailureClass.CHECKPOINT_CORRUPT)
    failed = look(plan, old_job, job, pods=(old_pod, pod), previous=committed_status(plan, "mini")).status
    assert failed.phase == "Failed"

    retried = look(plan, old_job, pods=(old_pod,), previous=failed)  # `distillchain retry` deleted the Job of tiny
    assert [a.name for a in retried.actions if isinstance(a, DeleteJob)] == [old_job["metadata"]["name"]]
    assert created(retried) == []

    # Killed before the status was written, and the Job is not gone yet: nothing is believed, nothing is made twice.
    old_job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:05Z"
    assert created(look(plan, old_job, pods=(old_pod,), previous=failed)) == []
    assert entry(look(plan, old_job, pods=(old_pod,), previous=retried.status), "mini").phase == "Pending"

    again = look(plan, previous=retried.status)
    assert created(again) == ["mini"]
    new_job, new_pod = a_committed_job(plan, "mini")
    new_job["metadata"] |= {"uid": "another", "creationTimestamp": "2026-01-01T13:00:00Z"}
    new_pod["metadata"]["ownerReferences"][0]["uid"] = "another"
    for previous in (again.status, failed):  # also when no status was written in between
        assert created(look(plan, new_job, pods=(new_pod,), previous=previous)) == ["tiny"]


def test_a_commit_counts_however_its_pod_and_job_end():
    plan = a_plan()
    job = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded", failed=1)
    pod = a_pod(job, phase="Failed", exit_code=0, message=a_commit(plan.stages[0]).to_json())
    assert created(look(plan, job, pods=(pod,))) == ["tiny"]

    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, exit_code=0, message=a_commit(plan.stages[0]).to_json())
    pod["status"]["containerStatuses"].append({"name": "shipper", "state": {"running": {}}})
    decision = look(plan, job, pods=(pod,))
    assert entry(decision, "mini").phase == "Committed"
    assert created(decision) == []
    assert "container shipper of pod" in entry(decision, "tiny").message


@pytest.mark.parametrize(
    "crashed, want",
    [
        pytest.param(False, "running mini: attempt 3", id="evicted twice"),
        pytest.param(
            True,
            "running mini: attempt 3, 1 of 4 crashes allowed are used up: "
            "pod {first} ended with exit code 1; see kubectl logs {first}",
            id="crashed, then evicted",
        ),
    ],
)
def test_a_stage_whose_pods_are_evicted_says_how_often_and_what_the_kubelet_said_last(crashed: bool, want: str):
    plan = a_plan()
    job = a_job(plan, "mini", active=1, failed=int(crashed))
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
    low = {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
    evicted = [a_pod(job, phase="Failed", exit_code=137, number=n, conditions=conditions) for n in (0, 1)]
    for pod in evicted:
        pod["status"] |= low
    if crashed:
        evicted[0] = a_pod(job, phase="Failed", exit_code=1)
    decision = look(plan, job, pods=(*evicted, a_pod(job, number=2)))
    why = "the last pod was thrown out of node node-7: Evicted: The node was low on resource: ephemeral-storage."
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
            "mini: waiting for the pods of Job {job} to be gone: pod {pod} is stopping",
            id="replaced after an edit",
        ),
    ],
)
def test_a_pod_that_its_node_does_not_let_go_stalls_the_chain_when_that_is_due(
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
    decision = look(plan, job, pods=(pod,))
    assert (stalled(decision).status, decision.status.message) == ("False", want_before.format_map(names))
    assert decision.look_again_s == 60

    pod["metadata"]["deletionTimestamp"] = "2026-01-01T11:57:00Z"
    decision = look(plan, job, pods=(pod,))
    assert created(decision) == []
    assert (stalled(decision).status, stalled(decision).reason) == ("True", "PodRejected")
    assert (decision.status.message or "").endswith(LOST.format_map(names))
    assert decision.status.phase == ("Suspended" if suspend else "Pending" if was_edited else "Running")
    assert decision.look_again_s is None


def test_why_a_job_failed_stays_said_when_the_pod_that_told_it_goes_with_its_node():
    plan = a_plan()
    job, told = a_failed_stage(plan, "mini", FailureClass.GATE_NOT_MET)
    earlier = a_pod(job, phase="Failed", exit_code=1, number=1)
    earlier["metadata"]["creationTimestamp"] = "2026-01-01T11:00:00Z"
    failed = look(plan, job, pods=(earlier, told)).status
    assert failed.stages[0].failure_class is FailureClass.GATE_NOT_MET
    assert look(plan, job, pods=(earlier,), previous=failed).status == failed


def test_a_commit_that_is_heard_of_late_ends_the_failure_of_its_job():
    plan = a_plan()
    job = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded", failed=1)
    failed = look(plan, job).status
    pod = a_pod(job, phase="Failed", exit_code=0, message=a_commit(plan.stages[0]).to_json())
    assert entry(look(plan, job, pods=(pod,), previous=failed), "mini").phase == "Committed"


def test_a_stage_that_never_got_to_train_is_not_told_to_go_on_from_a_saved_state_at_the_next_look():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, phase="Pending")
    waiting = look(plan, job, pods=(pod,)).status
    over = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded")
    failed = look(plan, over, pods=(pod,), previous=waiting).status
    assert "did not get to train" in (failed.message or "")
    assert look(plan, over, pods=(pod,), previous=failed).status == failed


SHIPPER_WAITS = {"name": "shipper", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}


def stalled(decision: Decision) -> Any:
    return next(condition for condition in decision.status.conditions if condition.type == "Stalled")


def test_a_sidecar_that_cannot_start_is_named_and_stalls_nothing_while_the_trainer_runs():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job)
    pod["status"]["containerStatuses"].append(SHIPPER_WAITS)
    decision = look(plan, job, pods=(pod,))
    name = pod["metadata"]["name"]
    want = f"running mini: container shipper of pod {name} cannot start: ImagePullBackOff: no such image"
    assert decision.status.message == want
    assert stalled(decision).status == "False"


@pytest.mark.parametrize("exit_code", [pytest.param(0, id="committed"), pytest.param(1, id="crashed")])
def test_a_sidecar_that_cannot_start_stalls_the_chain_once_the_trainer_has_ended(exit_code: int):
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    pod = a_pod(job, exit_code=exit_code, message=a_commit(plan.stages[0]).to_json())
    pod["status"]["containerStatuses"].append(SHIPPER_WAITS)
    decision = look(plan, job, pods=(pod,))
    assert created(decision) == []
    assert (stalled(decision).status, stalled(decision).reason) == ("True", "PodRejected")
    want = f"container shipper of pod {pod['metadata']['name']} cannot start: ImagePullBackOff: no such image"
    assert stalled(decision).message.endswith(f"its trainer has ended, {want}")


def test_a_stage_whose_time_is_up_still_says_how_far_it_came():
    """The Job controller has deleted its pods, and their logs with them."""
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    line = Progress(stage="mini", phase="Train", step=90, of=100)
    running = look(plan, job, pods=(a_pod(job),), progress=line).status
    over = a_job(plan, "mini", condition="Failed", reason="DeadlineExceeded", failed=1)
    failed = entry(look(plan, over, previous=running), "mini")
    assert failed.failure_class is FailureClass.DEADLINE_EXCEEDED
    assert failed.progress is not None
    assert (failed.progress.step, failed.progress.of) == (90, 100)


def test_pods_of_an_earlier_job_of_the_same_name_are_not_its_own():
    plan = a_plan()
    old, pod = a_failed_stage(plan, "mini", FailureClass.DATA_INVALID)
    new = a_job(plan, "mini", active=1)
    new["metadata"] |= {"uid": "another", "annotations": {}, "creationTimestamp": "2026-01-01T13:00:00Z"}
    decision = look(plan, new, pods=(pod,), previous=look(plan, old, pods=(pod,)).status)
    assert decision.actions == ()
    assert (entry(decision, "mini").phase, entry(decision, "mini").attempt) == ("Running", 1)


def test_a_failed_job_fails_the_chain_with_the_trainers_sentence_and_its_deletion_is_the_retry():
    plan = a_plan()
    stage = plan.stages[0]
    job = a_job(plan, "mini", condition="Failed", reason="PodFailurePolicy", failed=1)
    answer = a_failure(stage, FailureClass.DATA_INVALID, "train.tsv:7: 3 columns, expected 2")
    decision = look(plan, job, pods=(a_pod(job, phase="Failed", exit_code=65, message=answer.to_json()),))
    assert decision.actions == ()
    assert decision.status.phase == "Failed"
    assert decision.status.message == "mini: train.tsv:7: 3 columns, expected 2"
    assert [e.reason for e in transitions(ChainStatus(), decision.status)] == ["StageFailed"]
    later = look(plan, job, previous=decision.status)  # its pod is gone
    assert later.status == decision.status
    assert created(look(plan, previous=decision.status)) == ["mini"]


def test_a_succeeded_job_whose_pod_is_gone_is_asked_again():
    plan = a_plan()
    job, _ = a_committed_job(plan, "mini")
    decision = look(plan, job)
    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert entry(decision, "mini").phase == "Pending"


def test_a_job_that_succeeds_without_an_answer_fails_its_stage():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "hello"
    decision = look(plan, job, pods=(pod,))
    assert entry(decision, "mini").phase == "Failed"
    assert "is the image a distillchain trainer" in entry(decision, "mini").message


def test_suspend_stops_the_running_job_and_resume_lets_it_go_on():
    running, suspended = a_plan(), a_plan(suspend=True)
    job = a_job(running, "mini", active=1)
    decision = look(suspended, job, pods=(a_pod(job),))
    assert [a.suspend for a in decision.actions if isinstance(a, SetSuspend)] == [True]
    assert decision.status.phase == "Suspended"
    conditions = {c.type: c.status for c in decision.status.conditions}
    assert conditions["Suspended"] == "False"  # its pod still saves

    job = a_job(running, "mini", suspended=True)
    decision = look(suspended, job)
    assert decision.actions == ()
    assert {c.type: c.status for c in decision.status.conditions}["Suspended"] == "True"
    decision = look(running, job, previous=decision.status)
    assert [a.suspend for a in decision.actions if isinstance(a, SetSuspend)] == [False]


def test_a_job_that_another_controller_suspended_is_left_to_it_and_said():
    plan, suspended = a_plan(), a_plan(suspend=True)
    job = a_job(plan, "mini", suspended=True)
    job["metadata"]["annotations"] = {}
    decision = look(plan, job)
    assert decision.actions == ()
    name = job["metadata"]["name"]
    assert decision.status.message == (
        f"running mini: Job {name} is suspended by another (such as Kueue), who resumes it; by hand: kubectl patch job "
        f"""{name} -p '{{"spec":{{"suspend":false}}}}'"""
    )

    decision = look(suspended, job, previous=decision.status)
    assert (decision.actions, decision.status.phase) == ((), "Suspended")
    assert look(plan, job, previous=decision.status).actions == ()


def test_a_note_of_ours_does_not_outlive_anothers_resuming():
    """Else the next time that another suspends the Job it would be taken for ours, and resumed."""
    plan = a_plan()
    job = a_job(plan, "mini", suspended=True)
    job["spec"]["suspend"] = False
    (action,) = (action for action in look(plan, job).actions if isinstance(action, SetSuspend))
    assert not action.suspend


def test_a_suspended_chain_starts_nothing():
    assert look(a_plan(suspend=True)).actions == ()


def test_an_evicted_and_deleted_pod_still_counts_as_an_attempt():
    plan = a_plan()
    job = a_job(plan, "mini", active=1)
    observed = observe(chain_uid=CHAIN_UID, jobs=[job], pods=[a_pod(job, number=0)])
    decision = reconcile(plan, observed, previous=ChainStatus(), now=NOON)
    assert decision.actions == (NotePods(job["metadata"]["name"], job["metadata"]["uid"], ("pod-0",)),)

    job["metadata"]["annotations"] = {PODS_ANNOTATION: "pod-0"}
    observed = observe(chain_uid=CHAIN_UID, jobs=[job], pods=[a_pod(job, number=1)])
    decision = reconcile(plan, observed, previous=decision.status, now=NOON)
    assert entry(decision, "mini").attempt == 2
    assert decision.actions == (NotePods(job["metadata"]["name"], job["metadata"]["uid"], ("pod-0", "pod-1")),)


def test_jobs_of_another_owner_are_not_ours():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    job["metadata"]["ownerReferences"][0]["uid"] = "someone-else"
    assert created(look(plan, job, pods=(pod,))) == ["mini"]  # the API server answers 409, the shell waits


def test_a_chain_made_anew_that_runs_elsewhere_waits_for_the_pods_of_the_earlier_one():
    """Its Jobs have other names, so that no conflict of names tells of the old ones."""
    old = a_job(a_plan(template={"image": "registry.example/other:1"}), "mini", active=1)
    old["metadata"]["ownerReferences"][0]["uid"] = "the-earlier-chain"
    plan, pod = a_plan(), a_pod(old)
    decision = look(plan, old, pods=(pod,))
    assert created(decision) == []
    assert running_pod(plan, observe(chain_uid=CHAIN_UID, jobs=[old], pods=[pod])) is None
    name = old["metadata"]["name"]
    assert entry(decision, "mini").message == (
        f"waiting for Job {name} to be gone: its owner is another, such as an earlier chain relay; if nobody needs it: "
        f"kubectl delete job {name}"
    )
    suspended = look(a_plan(suspend=True), old, pods=(pod,)).status
    assert {c.type: c.status for c in suspended.conditions}["Suspended"] == "True", "none of its own pods runs"
    assert created(look(plan, old)) == ["mini"]


def test_an_answer_for_another_digest_commits_nothing():
    plan = a_plan()
    job, pod = a_committed_job(plan, "mini")
    other = a_commit(plan.stages[0]).model_copy(update={"digest": "0" * 64})
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = other.to_json()
    assert entry(look(plan, job, pods=(pod,)), "mini").phase == "Failed"


def test_a_chain_without_any_image_says_so():
    plan = a_plan(template={})
    decision = look(plan)
    assert "spec.template.image: missing" in entry(decision, "mini").message
    assert created(look(plan, image=IMAGE)) == ["mini"]


class World:
    """An API server and a Job controller in a dict: what hypothesis drives in any order.

    A stand-in, because the real ones cannot be made to crash between two given lines.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.status = ChainStatus()
        self.started: list[str] = []

    def look(self, *, crash_after: int | None) -> None:
        """One look, with the operator killed after so many of its writes."""
        observed = observe(chain_uid=CHAIN_UID, jobs=self.jobs.values(), pods=self.pods.values())
        decision = reconcile(self.plan, observed, previous=self.status, now=NOON)
        writes = [*decision.actions, decision.status]
        for write in writes[:crash_after]:
            if isinstance(write, ChainStatus):
                self.status = write
            else:
                self.perform(write)

    def perform(self, action: Action) -> None:
        if isinstance(action, CreateJob):
            name = action.job["metadata"]["name"]
            if name not in self.jobs:  # else 409
                job = a_job(self.plan, action.stage)
                self.jobs[name] = job
                self.started.append(action.stage)
        elif isinstance(action, DeleteJob):
            self.jobs.pop(action.name, None)
            self.pods = {key: pod for key, pod in self.pods.items() if not key.startswith(action.name)}

    def make_pod(self) -> None:
        for name, job in self.jobs.items():
            if name not in self.pods and "conditions" not in job["status"]:
                self.pods[name] = a_pod(job)
                job["status"]["active"] = 1

    def commit_pod(self) -> None:
        for name, pod in self.pods.items():
            job = self.jobs.get(name)
            if job is not None and pod["status"]["phase"] == "Running":
                stage = self.plan.stage(job["metadata"]["labels"]["distillchain.io/stage"])
                assert stage is not None
                self.pods[name] = a_pod(job, phase="Succeeded", exit_code=0, message=a_commit(stage).to_json())

    def complete_job(self) -> None:
        for name, pod in self.pods.items():
            if pod["status"]["phase"] == "Succeeded" and name in self.jobs:
                done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T12:00:00Z"}
                self.jobs[name]["status"] = {"succeeded": 1, "conditions": [done]}

    def forget_finished_jobs(self) -> None:
        """A TTL, or a person who tidies up after the status was written."""
        for entry in self.status.stages:
            if entry.phase == "Committed" and entry.job:
                self.jobs.pop(entry.job, None)
                self.pods.pop(entry.job, None)


STEPS = st.one_of(
    st.sampled_from(["make_pod", "commit_pod", "complete_job", "forget_finished_jobs"]),
    st.tuples(st.just("look"), st.sampled_from([None, 0, 1, 2])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=40))
def test_any_order_of_events_and_crashes_makes_one_job_per_stage_in_order(steps: list[Any]):
    world = World(PLAN)
    for step in steps:
        if isinstance(step, tuple):
            world.look(crash_after=step[1])
        else:
            getattr(world, step)()
        assert sum(pod["status"]["phase"] == "Running" for pod in world.pods.values()) <= 1
    for _ in range(4 * len(PLAN.stages)):  # then everything is left in peace
        world.look(crash_after=None)
        world.make_pod()
        world.commit_pod()
        world.complete_job()
    world.look(crash_after=None)
    assert world.started == [stage.name for stage in PLAN.stages]
    assert world.status.phase == "Succeeded"


PLAN = a_plan(stages=["mini", "tiny", "femto"])
