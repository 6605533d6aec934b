"""What one reconcile decides after an edit: which stages run again, and which Jobs are replaced."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import (
    CHAIN_UID,
    IMAGE,
    a_chain,
    a_committed_job,
    a_document,
    a_job,
    a_plan,
    a_pod,
)
from deciding import committed_status, created, decide, entry
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import ExportStatus
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.jobs.labels import SPEC_ANNOTATION
from distillchain_operator.jobs.stage_job import spec_hash

TIGHT = {"model": "hf://org/teacher", "gate": {"minMetric": 0.95}}


@pytest.mark.parametrize(
    "stage, change, want_started",
    [
        pytest.param("mini", {"training": {"epochs": 9}}, "mini", id="the first"),
        pytest.param("tiny", {"training": {"epochs": 9}}, "tiny", id="the second"),
        pytest.param("tiny", {"image": "registry.example/other:1"}, None, id="only the placement of the second"),
        pytest.param("tiny", {"gate": {"minMetric": 0.7}}, None, id="a gate that is met"),
        pytest.param("tiny", {"gate": {"minMetric": 0.99}}, "tiny", id="a gate that is not met"),
        pytest.param("tiny", {"gate": {"maxDrop": 0.01}}, "tiny", id="a drop that is too large"),
        pytest.param("mini", {"gate": {"minMetric": 0.85}}, "mini", id="a gate within rounding: the trainer decides"),
        pytest.param("tiny", {"export": {"onnx": {}}}, "tiny", id="an export that is not made yet"),
        pytest.param("tiny", {"export": {}}, None, id="no export"),
    ],
)
def test_an_edit_of_a_succeeded_chain_runs_the_edited_stage_again(
    stage: str, change: dict[str, Any], want_started: str | None
):
    status = committed_status(a_plan(), "mini", "tiny", accuracy=0.85)
    stages = [{"name": name, "student": {"model": f"hf://org/{name}"}} for name in ("mini", "tiny")]
    edited = [entry | change if entry["name"] == stage else entry for entry in stages]
    decision = decide(
        build_plan(a_chain(generation=2).model_copy(update={"spec": a_chain_spec(edited)})), previous=status
    )
    assert created(decision) == ([want_started] if want_started else [])


def test_a_stage_with_its_exports_needs_nothing_and_one_more_format_is_exported():
    exported = {"format": "onnx", "uri": "s3://b/model.onnx", "sizeBytes": 9, "metric": "0.8500"}
    exported |= {"examplesPerSecond": "9.0", "pytorchExamplesPerSecond": "4.0"}
    status = committed_status(a_plan(), "mini", "tiny", accuracy=0.85)
    has = [stage.model_copy(update={"exports": [ExportStatus.parse(exported)]}) for stage in status.stages]
    status = status.model_copy(update={"stages": has})
    plain, int8 = (
        a_plan(generation=2, template={"image": IMAGE, "export": {"onnx": onnx}}) for onnx in ({}, {"quantize": "int8"})
    )

    assert created(decide(plain, previous=status)) == []
    assert created(decide(int8, previous=status)) == ["mini"]


def a_chain_spec(stages: list[dict[str, Any]]) -> Any:

    document = a_document()
    document["spec"]["stages"] = stages
    return parse_chain(document).spec


def test_a_tighter_gate_of_the_root_teacher_runs_the_first_stage_again():
    status = committed_status(a_plan(), "mini", "tiny", teacher_accuracy=0.92)
    tight = a_plan(generation=2, teacher=TIGHT)
    decision = decide(tight, previous=status)
    assert created(decision) == ["mini"]
    assert entry(decision, "tiny").phase == "Committed"


def test_a_running_job_of_an_outdated_stage_is_deleted_and_nothing_starts_until_its_pods_are_gone():
    old, new = a_plan(), a_plan(template={"image": IMAGE, "training": {"epochs": 9}})
    job = a_job(old, "mini", active=1)
    decision = decide(new, job, pods=(a_pod(job),))
    assert [type(action) for action in decision.actions] == [DeleteJob]
    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:05Z"
    decision = decide(new, job, pods=(a_pod(job),))
    assert decision.actions == ()
    assert "to terminate" in entry(decision, "mini").message
    job["metadata"]["finalizers"] = ["foregroundDeletion", "example.com/audit"]
    kept = decide(new, job)
    assert created(kept) == []
    assert "waiting for the controller of finalizer example.com/audit to let Job" in entry(kept, "mini").message
    assert created(decide(new, pods=(a_pod(job),))) == []  # the Job is deleted, its pod not yet
    assert created(decide(new)) == ["mini"]


def test_a_running_job_that_differs_only_in_its_placement_keeps_running():
    old, new = a_plan(), a_plan(template={"image": "registry.example/other:1"})
    job = a_job(old, "mini", active=1)
    decision = decide(new, job, pods=(a_pod(job),))
    assert decision.actions == ()
    assert entry(decision, "mini").job == job["metadata"]["name"]


@pytest.mark.parametrize(
    "phase, suspended, failed",
    [
        pytest.param("Pending", False, 0, id="its pod waits for a node, an image or a Secret"),
        pytest.param("Failed", False, 1, id="its pod crashed, and the next one does not exist yet"),
        pytest.param("Failed", True, 0, id="it is suspended"),
    ],
)
def test_an_edit_replaces_a_job_whose_pod_has_not_started(phase: str, suspended: bool, failed: int):
    old, new = a_plan(), a_plan(template={"image": "registry.example/other:1"})
    job = a_job(old, "mini", active=1, failed=failed, suspended=suspended)
    decision = decide(new, job, pods=(a_pod(job, phase=phase, exit_code=137 if failed else None),))
    deleted = [action.name for action in decision.actions if isinstance(action, DeleteJob)]
    assert deleted == [job["metadata"]["name"]]
    assert created(decision) == []
    assert created(decide(new)) == ["mini"]


def test_an_edit_of_a_deadline_keeps_a_job_whose_pod_waits():
    """The operator enforces deadlines: the Job has none, and would lose its place in a queue."""
    before = a_plan(template={"image": IMAGE, "timeout": "1h"})
    edited = a_plan(template={"image": IMAGE, "timeout": "2h", "progressDeadline": "20m"}, generation=2)
    job = a_job(before, "mini", active=1)
    pods = (a_pod(job, phase="Pending"),)
    status = decide(before, job, pods=pods).status
    decision = decide(edited, job, pods=pods, previous=status)
    assert (decision.actions, entry(decision, "mini").phase) == ((), "Running")


def test_a_job_whose_pod_has_succeeded_is_not_replaced_before_the_job_controller_counts_it():
    old, new = a_plan(), a_plan(template={"image": "registry.example/other:1"})
    job = a_job(old, "mini", active=1)
    decision = decide(new, job, pods=(a_pod(job, phase="Succeeded", exit_code=0),))
    assert decision.actions == ()


def test_a_later_stage_keeps_running_when_an_earlier_gate_is_tightened():
    loose, tight = a_plan(), a_plan(generation=2, teacher=TIGHT)
    job = a_job(loose, "tiny", active=1)
    decision = decide(tight, job, pods=(a_pod(job),), previous=committed_status(loose, "mini"))
    assert (entry(decision, "tiny").phase, entry(decision, "tiny").job) == ("Running", job["metadata"]["name"])
    assert decision.status.phase == "Running"
    assert decision.status.message.startswith("running tiny")


def test_another_default_image_does_not_run_a_stage_again_whose_metric_equals_its_gate():
    """Status has four decimals, so it cannot say whether the gate is met beyond rounding."""
    gates = {"template": {}, "teacher": {"model": "hf://org/teacher", "gate": {"minMetric": 0.92}}}
    plan = a_plan(**gates)
    job, pod = a_committed_job(plan, "mini", image=IMAGE)
    status = decide(plan, job, pods=(pod,), image=IMAGE).status
    assert created(decide(plan, previous=status, image="registry.example/newer:2")) == ["tiny"]

    edited = a_plan(**gates, generation=2)
    assert created(decide(edited, previous=status, image="registry.example/newer:2")) == ["mini"]


def test_one_edit_that_tightens_two_gates_runs_both_stages_again():
    status = committed_status(a_plan(), "mini", "tiny", accuracy=0.85)
    stages = [
        {"name": name, "student": {"model": f"hf://org/{name}"}, "gate": {"minMetric": 0.85}}
        for name in ("mini", "tiny")
    ]
    edited = build_plan(a_chain(generation=2).model_copy(update={"spec": a_chain_spec(stages)}))
    first = decide(edited, previous=status)
    assert created(first) == ["mini"]
    job, pod = a_committed_job(edited, "mini", accuracy=0.8501)
    assert created(decide(edited, job, pods=(pod,), previous=first.status)) == ["tiny"]


@pytest.mark.parametrize("of", ["this release", "an earlier one, which hashed the timeout", "an earlier build"])
def test_another_default_image_of_the_operator_does_not_replace_a_job_whose_pod_has_not_started(of: str):
    plan = a_plan(template={"timeout": "1h"})
    job = a_job(plan, "mini", image="registry.example/old:1", active=1)
    if of == "an earlier build":
        del job["metadata"]["annotations"]
    elif of != "this release":
        job["metadata"]["annotations"][SPEC_ANNOTATION] = spec_hash(plan.chain, plan.stages[0], timeout_s=3600)
    pod = a_pod(job, phase="Pending")
    status = decide(plan, job, pods=(pod,), image="registry.example/old:1").status

    decision = decide(plan, job, pods=(pod,), previous=status, image="registry.example/new:1")

    assert decision.actions == ()
    assert entry(decision, "mini").phase == "Running"


def test_an_edit_replaces_a_job_that_started_before_it_and_waits_again():
    before = a_plan(template={"image": "registry.example/wrong:1"})
    job = a_job(before, "mini", active=1)
    edited = a_plan(generation=2, template={"image": IMAGE})
    running = (a_pod(job),)
    status = decide(edited, job, pods=running, previous=decide(before, job, pods=running).status).status
    replaced = (a_pod(job, phase="Failed", exit_code=70), a_pod(job, phase="Pending", number=1))

    decision = decide(edited, job, pods=replaced, previous=status)

    assert [action.name for action in decision.actions if isinstance(action, DeleteJob)] == [job["metadata"]["name"]]


def test_of_two_jobs_of_one_stage_the_older_one_stays():
    plan = a_plan(template={})
    first, second = (a_job(plan, "mini", image=f"registry.example/{name}:1", active=1) for name in ("a", "b"))
    second["metadata"]["creationTimestamp"] = "2026-01-01T12:00:05Z"
    pods = (a_pod(first, phase="Pending"), a_pod(second, number=1))

    by_one, by_other = (decide(plan, first, second, pods=pods, image=f"registry.example/{n}:1") for n in ("a", "b"))

    for decision in (by_one, by_other):
        assert [action.name for action in decision.actions if isinstance(action, DeleteJob)] == [
            second["metadata"]["name"]
        ]
        assert entry(decision, "mini").job == first["metadata"]["name"]


def test_of_two_jobs_of_one_stage_the_one_whose_pod_has_committed_it_is_not_deleted():
    plan = a_plan(template={})
    older = a_job(plan, "mini", image="registry.example/a:1", active=1)
    younger, committed = a_committed_job(plan, "mini", image="registry.example/b:1")
    younger["metadata"]["creationTimestamp"] = "2026-01-01T12:00:05Z"
    younger["status"] = {"active": 1}  # the Job controller has not seen the end of the pod

    decision = decide(plan, older, younger, pods=(a_pod(older), committed), image="registry.example/a:1")

    assert [action.name for action in decision.actions if isinstance(action, DeleteJob)] == [older["metadata"]["name"]]
    assert (entry(decision, "mini").phase, entry(decision, "mini").job) == ("Committed", younger["metadata"]["name"])


def test_a_renamed_stage_waits_for_the_pods_of_its_old_name_although_a_slot_is_free():
    """It is the same stage: two pods would write the same saved state."""
    document = a_document(stages=["mini"], maxParallelJobs=2)
    document["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID}
    plan = build_plan(parse_chain(document))
    document["spec"]["stages"][0]["name"] = "small"
    renamed = build_plan(parse_chain(document))
    assert renamed.stages[0].digest == plan.stages[0].digest
    job = a_job(plan, "mini")
    running = decide(plan, job, pods=(a_pod(job),)).status

    decision = decide(renamed, job, pods=(a_pod(job),), previous=running)

    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert entry(decision, "small").message == f"waiting for the pods of Job {job['metadata']['name']} to terminate"
    assert created(decide(renamed, previous=decision.status)) == ["small"]
