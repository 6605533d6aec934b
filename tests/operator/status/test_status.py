"""The status of a chain: numbers, conditions, Events and the patch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from chain_builders import a_chain, a_commit, a_plan
from deciding import committed_status
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, build_plan
from distillchain_api.metrics import Metric
from distillchain_api.resource.status import ChainStatus, MeasuredMetrics, MeasuredStatus, StageStatus
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_api.wire.manifest import Metrics, ModelSummary
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.status.chain_status import build_chain_status, chain_result, invalid_status, status_patch
from distillchain_operator.status.committed import committed_entry, measured_status
from distillchain_operator.status.stored import parse_status
from distillchain_operator.status.transitions import transitions

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ONE = datetime(2026, 1, 1, 13, tzinfo=UTC)


def pending(plan: Plan) -> list[StageStatus]:
    return [StageStatus(name=s.name, phase="Pending", digest=s.digest, message="waiting") for s in plan.stages]


def committed(plan: Plan, **commit: Any) -> list[StageStatus]:
    return [committed_entry(stage, a_commit(stage, **commit)) for stage in plan.stages]


def build(
    plan: Plan, stages: list[StageStatus], *, previous: ChainStatus | None = None, now: datetime = NOON
) -> ChainStatus:
    return build_chain_status(plan, stages, previous=previous or ChainStatus(), now=now)


def truths(status: ChainStatus) -> dict[str, str]:
    return {condition.type: condition.status for condition in status.conditions}


class Regressed(TextClassification):
    """A task with a metric that is no share."""

    metrics = (Metric("mse", "mean squared error", higher_is_better=False, is_share=False),)


def test_shares_are_strings_with_four_decimals():
    model = ModelSummary(
        metrics=Metrics(validation={"accuracy": 0.81, "macroF1": 0.7999999}), parameters=242_500, size_bytes=970_000
    )
    got = measured_status(model, a_plan().chain.spec.task)
    assert got.metrics.validation == {"accuracy": "0.8100", "macroF1": "0.8000"}
    assert got.metrics.test is None


@pytest.mark.parametrize(
    "value, want",
    [(0.0000123456789, "0.0000123457"), (12.3456789, "12.3457"), (1234567.8, "1234568"), (0.0, "0"), (3e-9, "3e-09")],
)
def test_other_metrics_are_strings_with_six_significant_digits(value: float, want: str):
    """Also one that only another release knows."""
    model = ModelSummary(metrics=Metrics(validation={"mse": value, "of": value}), parameters=1, size_bytes=4)

    got = measured_status(model, Regressed.model_construct())

    assert got.metrics.validation == {"mse": want, "of": want}


def test_a_chain_has_no_retention_of_an_error():
    plan = a_plan()
    task = Regressed.model_construct(type="TextClassification", metric="mse")
    chain = plan.chain.model_copy(update={"spec": plan.chain.spec.model_copy(update={"task": task})})
    measured = MeasuredStatus(metrics=MeasuredMetrics(validation={"mse": "12.5"}), parameters=10, size_bytes=40)
    stages = [entry.model_copy(update={"model": measured, "teacher": measured}) for entry in committed(plan)]

    result = chain_result(Plan(chain, plan.stages), stages)

    assert result is not None
    assert (result.metric, result.retention) == ("12.5", None)


def test_the_result_compares_the_last_student_with_the_root_teacher():
    plan = a_plan()
    mini = committed_entry(plan.stages[0], a_commit(plan.stages[0], accuracy=0.88, teacher_accuracy=0.90))
    tiny = committed_entry(
        plan.stages[1], a_commit(plan.stages[1], accuracy=0.81, teacher_accuracy=0.88, parameters=242_500)
    )
    result = chain_result(plan, [mini, tiny])
    assert result is not None
    assert (result.metric, result.retention, result.compression) == ("0.8100", "0.9000", "93.6")


def test_with_fine_tune_the_root_teacher_is_stage_zeros_own_model():
    plan = build_plan(a_chain(teacher={"model": "hf://org/pretrained", "fineTune": {}}, stages=["mini"]))
    zero = committed_entry(plan.stages[0], a_commit(plan.stages[0], accuracy=0.80, parameters=22_700_000))
    mini = committed_entry(plan.stages[1], a_commit(plan.stages[1], accuracy=0.76, parameters=1_000_000))
    result = chain_result(plan, [zero, mini])
    assert result is not None
    assert (result.retention, result.compression) == ("0.9500", "22.7")


@pytest.mark.parametrize(("parameters", "size"), [(1_000_000, "22.7 times fewer"), (25_000_000, "1.1 times as many")])
def test_a_student_that_is_larger_than_its_teacher_has_no_fewer_parameters(parameters: int, size: str):
    """It had "0.9 times fewer parameters"."""
    plan = build_plan(a_chain(stages=["mini"]))
    status = build(plan, committed(plan, parameters=parameters))
    assert (status.message or "").endswith(f", with {size} parameters")


def test_there_is_no_result_before_the_last_commit():
    plan = a_plan()
    assert chain_result(plan, [*committed(plan)[:1], *pending(plan)[1:]]) is None


def test_the_five_conditions_in_each_phase():
    plan = a_plan()
    stages = pending(plan)
    failed = [stages[0].model_copy(update={"phase": "Failed", "failure_class": FailureClass.CRASHED}), stages[1]]
    suspended = build_plan(a_chain(suspend=True))
    off = {"Ready": "False", "Reconciling": "False", "Stalled": "False", "Succeeded": "False", "Suspended": "False"}
    assert truths(build(plan, stages)) == off | {"Reconciling": "True"}
    assert truths(build(plan, failed)) == off | {"Stalled": "True"}
    assert truths(build(plan, committed(plan))) == off | {"Ready": "True", "Succeeded": "True"}
    assert truths(build(suspended, stages)) == off | {"Suspended": "True"}


def test_the_time_of_a_condition_changes_only_with_its_status():
    plan = a_plan()
    first = build(plan, pending(plan))
    later = build(plan, committed(plan), previous=first, now=ONE)
    times = {c.type: c.last_transition_time for c in later.conditions}
    assert times == {
        "Ready": "2026-01-01T13:00:00Z",
        "Reconciling": "2026-01-01T13:00:00Z",
        "Stalled": "2026-01-01T12:00:00Z",
        "Succeeded": "2026-01-01T13:00:00Z",
        "Suspended": "2026-01-01T12:00:00Z",
    }


def test_an_invalid_spec_reports_all_faults_and_keeps_the_stages():
    plan = a_plan()
    before = build(plan, committed(plan))
    status = invalid_status(["spec.a: wrong", "spec.b: wrong"], generation=2, previous=before, now=ONE)
    assert status.stages == before.stages
    assert status.message == "spec.a: wrong\nspec.b: wrong"
    assert truths(status)["Stalled"] == "True"
    assert [event.reason for event in transitions(before, status)] == ["InvalidSpec"]
    assert transitions(status, status) == []


def test_a_patch_has_null_for_a_removed_field():
    plan = a_plan()
    patch = status_patch(build(plan, pending(plan)))
    assert patch["result"] is None
    assert patch["metric"] is None
    full = status_patch(build(plan, committed(plan)))
    assert full["result"]["testMetric"] is None


def test_a_status_can_be_read_back():
    plan = a_plan()
    status = build(plan, committed(plan))
    assert ChainStatus.parse(status.to_document()) == status


@pytest.mark.parametrize("time", ["soon", "2026-01-01T12:00:00"])
def test_a_time_that_is_none_is_left_out_of_a_status_that_was_edited_by_hand(time: str):
    plan = a_plan()
    document = committed_status(plan, "mini").to_document() | {"startedAt": time}
    document["stages"][0] |= {"nextStartAt": time, "finishedAt": time}

    found = parse_status({"status": document}, ChainKey("ml", "relay"))

    stage = found.stages[0]
    assert (found.started_at, stage.next_start_at, stage.finished_at, stage.phase) == (None, None, None, "Committed")


def test_a_doubt_about_the_student_is_part_of_message_and_event():
    plan = a_plan()
    answers = [a_commit(stage) for stage in plan.stages]
    guesser = answers[-1].student.model_copy(update={"doubt": "accuracy 0.5 is not above chance"})
    answers[-1] = answers[-1].model_copy(update={"student": guesser})
    done = build(plan, [committed_entry(stage, answer) for stage, answer in zip(plan.stages, answers, strict=True)])

    assert done.phase == "Succeeded"
    assert done.message is not None
    assert done.message.endswith("; it may not have learned the task: accuracy 0.5 is not above chance")
    events = transitions(build(plan, pending(plan)), done)
    assert [event.type for event in events] == ["Normal", "Warning", "Normal"]
    assert events[1].message.endswith("; it may not have learned the task: accuracy 0.5 is not above chance")


def test_each_change_has_one_event():
    plan = a_plan()
    start, done = build(plan, pending(plan)), build(plan, committed(plan))
    assert [event.reason for event in transitions(start, done)] == [
        "StageCommitted",
        "StageCommitted",
        "ChainSucceeded",
    ]
    assert transitions(done, done) == []


def with_warnings(plan: Plan, *warnings: str) -> list[StageStatus]:
    """The entries of a plan whose first stage was committed with these warnings."""
    first = a_commit(plan.stages[0]).model_copy(update={"warnings": list(warnings)})
    return [committed_entry(plan.stages[0], first), *pending(plan)[1:]]


def test_warnings_of_a_commit_are_in_the_status_and_in_one_event():
    plan = a_plan()
    before = build(plan, pending(plan))
    after = build(plan, with_warnings(plan, "class high has no rows", "17 texts are in train too"), previous=before)
    assert after.stages[0].warnings == ["class high has no rows", "17 texts are in train too"]

    committed_event, warning = transitions(before, after)
    assert committed_event.reason == "StageCommitted"
    assert (warning.reason, warning.type) == ("StageWarnings", "Warning")
    assert warning.message == "stage mini: 2 warnings: class high has no rows; 17 texts are in train too"
    assert transitions(after, after) == []


def test_warnings_are_bounded():
    plan = a_plan()
    entry = with_warnings(plan, *(["x" * 3000] * 40))[0]
    assert len(entry.to_json()) < 16 * 1024
    assert entry.warnings[-1] == "24 more in the manifest"
    event = transitions(build(plan, pending(plan)), build(plan, [entry, *pending(plan)[1:]]))[-1]
    assert len(event.message.encode()) <= 1024
