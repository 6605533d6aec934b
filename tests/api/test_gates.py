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
from distillchain_api.metrics import format_share
from distillchain_api.resource.spec import parse_chain
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
