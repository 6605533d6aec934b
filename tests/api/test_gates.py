"""The one rule of gates, its messages, and how shares are written beside a gate."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_document
from distillchain_api.gates import (
    Miss,
    missed_gate,
    missed_student_gate,
    missed_teacher_gate,
    student_sentence,
    teacher_sentence,
)
from distillchain_api.graph import build_plan
from distillchain_api.metrics import ACCURACY, Metric, format_share
from distillchain_api.resource.gate import Gate, TeacherGate, gate_faults
from distillchain_api.resource.spec import parse_chain
from distillchain_api.tasks import task_types
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_api.wire.work_order import WorkOrder


def an_order(stage: str, **gate: float) -> WorkOrder:
    """The work order of a stage with a gate; the teacher's gate is 0.9."""
    document = a_document(stages=["mini", "tiny"])
    for item in document["spec"]["stages"]:
        item["gate"] = gate
    planned = build_plan(parse_chain(document)).stage(stage)
    assert planned is not None
    return planned.work_order


@pytest.mark.parametrize(
    "value, beside, want",
    [
        (0.612, 0.9, "0.612"),
        (0.9, None, "0.90"),
        (1.0, None, "1.00"),
        (0.05, None, "0.05"),
        (0.89999, 0.9, "0.89999"),
        (0.8990825688, 0.9, "0.8991"),
    ],
)
def test_a_share_never_reads_as_the_gate_it_misses(value: float, beside: float | None, want: str):
    assert format_share(value, beside) == want


@pytest.mark.parametrize(
    "value, gate, want",
    [
        pytest.param(0.70, {"minMetric": 0.79}, "stage tiny: accuracy 0.70 is below spec.stages[1].gate.minMetric 0.79; train it better or lower the gate: KEPT", id="too low"),
        pytest.param(0.80, {"maxDrop": 0.05}, "stage tiny: accuracy 0.80 is 0.11 below its teacher's 0.91, more than spec.stages[1].gate.maxDrop 0.05; step down less, train it better or raise the gate: KEPT", id="too far down"),
        pytest.param(0.86, {"maxDrop": 0.05}, None, id="as far down as it may"),
        pytest.param(0.79, {"minMetric": 0.79}, None, id="just enough"),
        pytest.param(0.0, {}, None, id="no gate"),
        pytest.param(0.0, {"minMetric": 0.0}, None, id="a gate that everything meets"),
    ],
)  # fmt: skip
def test_a_student_that_misses_its_gate_gets_one_sentence(value: float, gate: dict[str, Any], want: str | None):
    order = an_order("tiny", **gate)

    miss = missed_student_gate(order, value, 0.91)

    assert (student_sentence(miss, order, value, 0.91, kept="KEPT") if miss else None) == want


@pytest.mark.parametrize(
    "value, want",
    [
        pytest.param(0.612, "teacher hf://org/teacher: accuracy 0.612 is below spec.teacher.gate.minMetric 0.90; fine-tune it (spec.teacher.fineTune) or lower the gate", id="too low"),
        pytest.param(0.9, None, id="just enough"),
        pytest.param(None, "teacher hf://org/teacher: accuracy 0.00 is below spec.teacher.gate.minMetric 0.90; fine-tune it (spec.teacher.fineTune) or lower the gate", id="not measured"),
    ],
)  # fmt: skip
def test_a_teacher_that_misses_its_gate_gets_one_sentence(value: float | None, want: str | None):
    order = an_order("mini")

    miss = missed_teacher_gate(order, value)

    assert (teacher_sentence(miss, order, uri="hf://org/teacher") if miss else None) == want


def test_only_the_first_stage_holds_the_gate_of_the_root_teacher():
    assert missed_gate(an_order("mini"), 0.9, 0.5) == Miss("spec.teacher.gate.minMetric", 0.5, 0.9, of_teacher=True)
    assert missed_gate(an_order("tiny"), 0.9, 0.5) is None


def test_rounded_values_miss_a_gate_where_rounding_leaves_a_doubt():
    """0.79 may stand for 0.7896."""
    order = an_order("tiny", minMetric=0.79)

    assert missed_student_gate(order, 0.79, 0.9) is None
    assert missed_student_gate(order, 0.79, 0.9, slack=-0.0005) is not None
    assert missed_student_gate(order, 0.7906, 0.9, slack=-0.0005) is None


class Perplexing(TextClassification):
    """A task whose metric is better when lower and has no upper bound."""

    metrics = (Metric("perplexity", "perplexity", higher_is_better=False, is_share=False),)


class Erring(TextClassification):
    """A task whose metric is a share that is better when lower."""

    metrics = (Metric("hammingLoss", "Hamming loss", higher_is_better=False),)


def of_task(order: WorkOrder, kind: type[TextClassification]) -> WorkOrder:
    task = kind.model_construct(type="TextClassification", metric=kind.metrics[0].name)
    return order.model_copy(update={"task": task})


@pytest.mark.parametrize(
    "value, gate, want",
    [
        pytest.param(31.25, {"max_metric": 20.0}, "stage tiny: perplexity 31.25 is above spec.stages[1].gate.maxMetric 20; train it better or raise the gate: KEPT", id="too high"),
        pytest.param(31.25, {"max_drop": 10.0}, "stage tiny: perplexity 31.25 is 16.15 above its teacher's 15.1, more than spec.stages[1].gate.maxDrop 10; step down less, train it better or raise the gate: KEPT", id="too much above the teacher"),
        pytest.param(20.0001, {"max_metric": 20.0}, "stage tiny: perplexity 20.0001 is above spec.stages[1].gate.maxMetric 20; train it better or raise the gate: KEPT", id="just too high"),
        pytest.param(12.0, {"max_metric": 20.0, "max_drop": 0.0}, None, id="better than the teacher"),
        pytest.param(20.0, {"max_metric": 20.0}, None, id="as high as it may"),
    ],
)  # fmt: skip
def test_a_metric_that_is_better_when_lower_has_a_maximum(value: float, gate: dict[str, Any], want: str | None):
    order = of_task(an_order("tiny"), Perplexing).model_copy(update={"gate": Gate(**gate)})

    miss = missed_student_gate(order, value, 15.1)

    assert (student_sentence(miss, order, value, 15.1, kept="KEPT") if miss else None) == want


def test_a_root_teacher_has_a_maximum_too():
    order = of_task(an_order("mini"), Perplexing)
    assert order.teacher is not None
    order = order.model_copy(update={"teacher": order.teacher.model_copy(update={"gate": TeacherGate(max_metric=9.0)})})

    miss = missed_teacher_gate(order, 9.5)

    assert missed_teacher_gate(order, 9.0) is None
    assert miss is not None
    assert teacher_sentence(miss, order, uri="hf://org/teacher") == (
        "teacher hf://org/teacher: perplexity 9.5 is above spec.teacher.gate.maxMetric 9; fine-tune it "
        "(spec.teacher.fineTune) or raise the gate"
    )


@pytest.mark.parametrize("kind, bound", [(Perplexing, 1000.0), (Erring, 0.5)])
@pytest.mark.parametrize("gate", ["max_metric", "max_drop"])
def test_a_value_that_was_not_measured_misses_every_gate(kind: type[TextClassification], bound: float, gate: str):
    order = of_task(an_order("tiny"), kind).model_copy(update={"gate": Gate(**{gate: bound})})

    assert missed_student_gate(order, None, 0.1) is not None


@pytest.mark.parametrize(
    "kind, gates, want",
    [
        pytest.param(Perplexing, {"stages[0].gate": Gate(min_metric=9.0)}, ["stages[0].gate.minMetric: got 9, expected no minMetric, because perplexity is better when lower; write maxMetric"], id="minimum of an error"),
        pytest.param(TextClassification, {"teacher.gate": TeacherGate(max_metric=0.5)}, ["teacher.gate.maxMetric: got 0.5, expected no maxMetric, because accuracy is better when higher; write minMetric"], id="maximum of an accuracy"),
        pytest.param(Perplexing, {"stages[0].gate": Gate(max_metric=30.0, max_drop=4.5)}, [], id="a drop above 1 in the metric's unit"),
        pytest.param(Erring, {"stages[0].gate": Gate(max_metric=30.0)}, ["stages[0].gate.maxMetric: got 30, expected a share from 0 to 1; for five points write 0.05, for ninety percent 0.9"], id="no share"),
    ],
)  # fmt: skip
def test_a_gate_must_fit_the_metric(
    kind: type[TextClassification], gates: dict[str, Gate | TeacherGate], want: list[str]
):
    task = kind.model_construct(metric=kind.metrics[0].name)

    assert [str(fault) for fault in gate_faults(task, gates)] == want


def test_metrics_of_one_name_are_the_same_in_every_task_type():
    """The CEL rules of gates go by the metric's name."""
    metrics = {metric for kind in task_types().values() for metric in kind.metrics}

    assert len({metric.name for metric in metrics}) == len(metrics)


@pytest.mark.parametrize("better, worse, metric", [(0.9, 0.8, ACCURACY), (3.0, 4.0, Perplexing.metrics[0])])
def test_better_goes_by_the_direction(better: float, worse: float, metric: Metric):
    assert metric.is_better(better, worse)
    assert not metric.is_better(worse, better)
    assert not metric.is_better(better, better)
    assert not metric.is_better(float("nan"), worse)
