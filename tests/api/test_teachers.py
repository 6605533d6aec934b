"""Several teachers in the spec: what is refused, what the work order says, and what is in the digest."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.graph import PlannedStage, build_plan
from distillchain_api.resource.spec import parse_chain

BEFORE = {"stage": "mini"}
ROOT = {"stage": "teacher"}
OUTSIDE = {"model": "hf://org/other"}


def a_chain(*teachers: dict[str, Any], stage: int = 1, **spec: Any) -> dict[str, Any]:
    """Two stages, mini and tiny; one of them has these teachers."""
    document = copy.deepcopy(GOOD)
    document["spec"] |= spec
    if teachers:
        document["spec"]["stages"][stage]["teachers"] = list(teachers)
    return document


def planned(*teachers: dict[str, Any], **parts: Any) -> PlannedStage:
    return build_plan(parse_chain(a_chain(*teachers, **parts))).stages[-1]


def faults(document: dict[str, Any]) -> list[str]:
    with pytest.raises(BadDocument) as error:
        parse_chain(document)
    return [str(fault) for fault in error.value.faults]


def test_the_work_order_has_every_teacher_with_its_share():
    stage = planned({"model": "hf://org/other", "weight": 1}, {"stage": "mini", "weight": 2}, {"stage": "teacher"})

    order = stage.work_order
    assert order.teacher is not None
    assert order.teacher.name == "mini"
    found = [(other.teacher.name, other.teacher.model, other.share) for other in order.further_teachers]
    assert found == [("hf://org/other", "hf://org/other", 0.25), ("teacher", "hf://org/teacher@main", 0.25)]
    assert order.shares == [0.5, 0.25, 0.25]
    assert stage.needs == ("mini",), "the others are there already"


def test_a_fine_tuned_root_and_an_earlier_stage_must_be_committed():
    document = a_chain()
    document["spec"]["teacher"] = {"model": "hf://org/teacher", "fineTune": {}}
    document["spec"]["stages"].append(
        {"name": "femto", "student": {"model": "hf://org/femto"}, "teachers": [{"stage": "tiny"}, ROOT, BEFORE]}
    )

    plan = build_plan(parse_chain(document))

    assert plan.stages[-1].needs == ("tiny", "teacher", "mini")
    digests = {stage.name: stage.digest for stage in plan.stages}
    further = plan.stages[-1].work_order.further_teachers
    assert [other.teacher.digest for other in further] == [digests["teacher"], digests["mini"]]


def test_teachers_and_their_shares_are_in_the_digest_and_their_order_is_not():
    plain = planned().digest

    assert planned(BEFORE).digest == plain, "the stage before alone is the default"
    two = planned(BEFORE, ROOT).digest
    assert two != plain
    assert planned(ROOT, BEFORE).digest == two
    assert planned({**BEFORE, "weight": 3}, {**ROOT, "weight": 3}).digest == two, "only the shares count"
    assert planned({**BEFORE, "weight": 3}, ROOT).digest != two
    assert planned(BEFORE, OUTSIDE).digest not in (plain, two)
    three = planned({**BEFORE, "weight": 0.1}, {**ROOT, "weight": 0.1}, {**OUTSIDE, "weight": 0.1}).digest
    assert three == planned(BEFORE, OUTSIDE, ROOT).digest


@pytest.mark.parametrize(
    "teachers, want",
    [
        ([BEFORE, {"stage": "tiny"}], ["spec.stages[1].teachers[1].stage: got \"tiny\", expected an earlier stage; a stage cannot teach itself"]),
        ([BEFORE, {"stage": "minni"}], ["spec.stages[1].teachers[1].stage: no earlier stage; did you mean mini?"]),
        ([BEFORE, BEFORE], ["spec.stages[1].teachers[1].stage: got \"mini\", expected each teacher once; add up its weights"]),
        ([BEFORE, OUTSIDE, OUTSIDE], ["spec.stages[1].teachers[2].model: got \"hf://org/other\", expected each teacher once; add up its weights"]),
        (
            [BEFORE, {"model": "hf://org/teacher@main"}],
            ["spec.stages[1].teachers[1].model: got \"hf://org/teacher@main\", expected another model; write stage: teacher for the root teacher"],
        ),
        (
            [ROOT, OUTSIDE],
            ["spec.stages[1].teachers: got teacher and hf://org/other, expected the stage before among them; add {stage: mini}, because each stage of a chain learns from the one before"],
        ),
        ([BEFORE, {"stage": "teacher", "weight": 0}], ["spec.stages[1].teachers[1].weight: got 0, expected a number from 0.001 to 1000; 1.0 is the default"]),
        ([BEFORE, {"stage": "teacher", "model": "hf://org/x"}], ["spec.stages[1].teachers[1]: got both, expected one of stage and model"]),
        ([BEFORE, {"weight": 2}], ["spec.stages[1].teachers[1]: got none, expected one of stage and model"]),
    ],
)  # fmt: skip
def test_bad_teachers_are_refused(teachers: list[dict[str, Any]], want: list[str]):
    assert faults(a_chain(*teachers)) == want


def test_a_later_stage_cannot_teach():
    assert faults(a_chain({"stage": "teacher"}, {"stage": "tiny"}, stage=0)) == [
        'spec.stages[0].teachers[1].stage: got "tiny", expected an earlier stage; this one runs later; name another'
    ]


@pytest.mark.parametrize(
    "distillation, want",
    [
        ({"alpha": 0}, "expected none with distillation.alpha 0, because then only labels count; remove them"),
        (
            {"hidden": {"objective": "ValueRelation", "weight": 1.0}},
            "expected one teacher with distillation.hidden, which compares hidden states of one model; remove the "
            "others, or set hidden.weight: 0",
        ),
    ],
)
def test_what_several_teachers_cannot_be_combined_with(distillation: dict[str, Any], want: str):
    document = a_chain(BEFORE, ROOT, template={"distillation": distillation})

    assert faults(document) == [f"spec.stages[1].teachers: {want}"]
    document["spec"]["stages"][1]["distillation"] = {"alpha": 1, "hidden": {"objective": "ValueRelation", "weight": 0}}
    parse_chain(document)
    document["spec"]["stages"][1] |= {"teachers": [BEFORE], "distillation": {}}
    parse_chain(document)
