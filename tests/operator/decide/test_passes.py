"""What plan and reconcile make of a stage with `teacherPass`: a vertex of its own before the stage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chain_builders import CHAIN_UID, a_committed_job, a_document, a_job, a_plan, a_pod, retrying
from deciding import a_failed_job, committed_status, created, decide, entry
from distillchain_api.failures import FailureClass
from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan, build_plan
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.jobs.stage_job import JobDefaults, build_job
from distillchain_operator.status.transitions import transitions

EIGHT = {"resources": {"limits": {"nvidia.com/gpu": "8"}}, "parallelism": {"sharding": "Full"}}


def a_plan_with_pass(
    *, where: dict[str, Any] | None = None, mini: dict[str, Any] | None = None, generation: int = 1, **spec: Any
) -> Plan:
    """mini, taught by the root after a pass, and tiny."""
    document = a_document(**spec)
    document["spec"]["stages"][0] |= {"teacherPass": EIGHT if where is None else where, **(mini or {})}
    document["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": generation}
    return build_plan(parse_chain(document))


def order_of(plan: Plan, stage: str) -> dict[str, Any]:
    planned = plan.stage(stage)
    assert planned is not None
    job = build_job(plan.chain, planned, defaults=JobDefaults())
    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    return json.loads(next(e["value"] for e in trainer["env"] if e["name"] == "DISTILLCHAIN_WORK_ORDER"))


def test_the_pass_is_a_job_with_its_own_resources_and_the_stage_keeps_its_digest():
    plan, without = a_plan_with_pass(), a_plan()

    assert [(stage.name, stage.needs) for stage in plan.stages] == [
        ("mini-pass", ()),
        ("mini", ("mini-pass",)),
        ("tiny", ("mini",)),
    ]
    assert [stage.digest for stage in plan.students] == [stage.digest for stage in without.stages]
    assert order_of(plan, "mini-pass")["parallelism"] == {"nodes": 1, "processesPerNode": 8, "sharding": "Full"}
    assert "parallelism" not in order_of(plan, "mini")
    assert order_of(plan, "mini")["teacher"]["passDigest"] == plan.stages[0].digest


@pytest.mark.parametrize(
    "change, same",
    [
        pytest.param({"training": {"epochs": 9}}, True, id="epochs of the student"),
        pytest.param({"student": {"model": "hf://org/other"}}, True, id="another student"),
        pytest.param({"training": {"precision": "bfloat16"}}, False, id="precision"),
    ],
)
def test_the_digest_of_a_pass_is_that_of_teacher_task_and_precision(change: dict[str, Any], same: bool):
    before, after = a_plan_with_pass().stages[0], a_plan_with_pass(mini=change).stages[0]

    assert (before.digest == after.digest) == same


def test_a_stage_starts_once_its_pass_is_committed():
    plan = a_plan_with_pass()
    first = decide(plan)
    assert created(first) == ["mini-pass"]
    assert entry(first, "mini").message == "waiting for mini-pass to commit"
    job, pod = a_committed_job(plan, "mini-pass", accuracy=0.93)

    decision = decide(plan, job, pods=(pod,), previous=first.status)

    assert created(decision) == ["mini"]
    assert decision.status.stage == "1/3"
    # It is the teacher's, not that of a student.
    assert decision.status.metric is None


def test_the_root_teacher_of_the_result_is_that_of_the_pass():
    plan = a_plan_with_pass()

    status = committed_status(plan, "mini-pass", "mini", "tiny", accuracy=0.85, teacher_accuracy=0.9)

    assert status.phase == "Succeeded"
    assert status.result is not None
    assert status.result.retention == "0.9444"


def test_a_tighter_gate_of_the_root_teacher_asks_the_pass_again():
    status = committed_status(a_plan_with_pass(), "mini-pass", "mini", "tiny", teacher_accuracy=0.92)

    tight = a_plan_with_pass(generation=2, teacher={"model": "hf://org/teacher", "gate": {"minMetric": 0.95}})

    assert created(decide(tight, previous=status)) == ["mini-pass"]


def test_a_pass_is_not_made_for_a_stage_that_is_committed():
    before = committed_status(a_plan(), "mini", "tiny", teacher_accuracy=0.92)
    plan = a_plan_with_pass(generation=2)

    decision = decide(plan, previous=before)

    assert created(decision) == []
    assert decision.status.phase == "Succeeded"
    assert decision.status.result == before.result
    assert entry(decision, "mini-pass").checkpoint is None
    (event,) = transitions(before, decision.status)
    assert event.message == "stage mini-pass is not needed: all that needs it is committed"
    assert decide(plan, previous=decision.status).status == decision.status


def test_a_pass_that_was_not_needed_is_made_once_its_stage_changes():
    before = committed_status(a_plan(), "mini", "tiny")
    unneeded = decide(a_plan_with_pass(generation=2), previous=before).status

    edited = decide(a_plan_with_pass(generation=3, mini={"training": {"epochs": 9}}), previous=unneeded)

    assert created(edited) == ["mini-pass"]
    assert entry(edited, "mini").message == "waiting for mini-pass to commit"


def test_a_pass_that_its_stage_finds_damaged_runs_again_once_the_stage_is_retried():
    plan = a_plan_with_pass()
    done, answered = a_committed_job(plan, "mini-pass")
    failed, pod = a_failed_job(plan, "mini", FailureClass.CHECKPOINT_CORRUPT)
    status = decide(plan, done, pods=(answered,)).status
    status = decide(plan, done, failed, pods=(answered, pod), previous=status).status

    decision = decide(retrying(plan, "mini"), done, failed, pods=(answered, pod), previous=status)

    assert entry(decision, "mini-pass").phase == "Pending"


def test_the_pass_of_a_later_stage_that_is_found_damaged_runs_again_too():
    document = a_document()
    document["spec"]["stages"][1]["teacherPass"] = EIGHT
    document["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": 1}
    plan = build_plan(parse_chain(document))
    done = {name: a_committed_job(plan, name) for name in ("mini", "tiny-pass")}
    jobs, pods = [job for job, _ in done.values()], [pod for _, pod in done.values()]
    status = decide(plan, *jobs, pods=tuple(pods)).status
    failed, pod = a_failed_job(plan, "tiny", FailureClass.CHECKPOINT_CORRUPT)
    status = decide(plan, *jobs, failed, pods=(*pods, pod), previous=status).status

    plan = retrying(plan, "tiny")
    retried = decide(plan, *jobs, failed, pods=(*pods, pod), previous=status)

    gone = {action.name for action in retried.actions if isinstance(action, DeleteJob)}
    assert gone == {job["metadata"]["name"] for job in (*jobs, failed)}
    first = decide(plan, previous=retried.status)
    assert created(first) == ["mini"]
    job, answered = a_committed_job(plan, "mini")
    assert created(decide(plan, job, pods=(answered,), previous=first.status)) == ["tiny-pass"]


def test_a_pass_that_runs_is_not_stopped_for_an_edit_of_its_student():
    before = a_plan_with_pass()
    job = a_job(before, "mini-pass", active=1)
    pods = (a_pod(job),)

    after = a_plan_with_pass(generation=2, mini={"training": {"epochs": 9}})
    decision = decide(after, job, pods=pods, previous=decide(before, job, pods=pods).status)

    assert decision.actions == ()
    assert entry(decision, "mini-pass").phase == "Running"


@pytest.mark.parametrize(
    "mini, message",
    [
        pytest.param(
            {"distillation": {"hidden": {"objective": "HiddenMSE"}}},
            "spec.stages[0].teacherPass: got a pass, expected none for stage mini, which has distillation.hidden; hidden "
            "states need the teacher in every step: remove one of them",
            id="hidden states",
        ),
        pytest.param(
            {"distillation": {"alpha": 0.0}},
            "spec.stages[0].teacherPass: got a pass, expected none for stage mini, whose distillation.alpha is 0; its "
            "student learns from the labels alone: remove teacherPass or raise alpha",
            id="labels alone",
        ),
    ],
)
def test_a_pass_that_its_stage_could_not_use_is_refused(mini: dict[str, Any], message: str):
    with pytest.raises(BadDocument) as error:
        check_plan(a_plan_with_pass(where={}, mini=mini))

    assert [str(fault) for fault in error.value.faults] == [message]


def test_a_stage_named_as_the_pass_of_another_one_is_refused():
    document = a_document(stages=["mini", "mini-pass"])
    document["spec"]["stages"][0]["teacherPass"] = {}

    with pytest.raises(BadDocument, match=r'stages\[1\].name: got "mini-pass", expected another name'):
        parse_chain(document)


def test_a_pass_that_was_not_needed_is_made_once_its_stage_is_trained_again():
    before = committed_status(a_plan(), "mini", "tiny")
    plan = a_plan_with_pass(generation=2)
    unneeded = decide(plan, previous=before).status

    decision = decide(retrying(plan, "mini", "tiny", committed_too=True), previous=unneeded)

    assert (created(decision), entry(decision, "mini").phase) == (["mini-pass"], "Pending")
