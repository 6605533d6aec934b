"""`spec.evidence` that is refused, and what is advised instead."""

from __future__ import annotations

from typing import Any

import pytest

from api.evidence_plans import a_plan, a_stage
from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan
from distillchain_api.plan_check import check_plan


def faults(plan: Plan) -> list[str]:
    with pytest.raises(BadDocument) as refused:
        check_plan(plan)
    return [str(fault) for fault in refused.value.faults]


@pytest.mark.parametrize(
    "evidence, stages, want",
    [
        pytest.param(
            {},
            [a_stage("mini"), a_stage("tiny", student={"fromTeacher": {"layers": 2}})],
            [
                'spec.evidence.controls: got "Direct", expected none for stage tiny, whose student starts as layers of '
                "its teacher (fromTeacher); remove evidence",
                'spec.evidence.controls: got "FromRoot", expected none for stage tiny: layers of the root teacher are '
                "another model than layers of mini; remove evidence",
            ],
            id="layers of a teacher",
        ),
        pytest.param(
            {},
            [
                a_stage("mini"),
                a_stage("tiny", distillation={"hidden": {"objective": "ValueRelation", "teacherLayer": 3}}),
            ],
            [
                'spec.evidence.controls: got "FromRoot", expected none for stage tiny, whose distillation.hidden numbers '
                "layers of stage mini; leave the numbers out, so that they follow from each teacher, or write "
                "controls: [Direct]"
            ],
            id="numbered layers",
        ),
        pytest.param(
            {},
            [a_stage("mini"), a_stage("tiny", distillation={"alpha": 0})],
            [
                "spec.evidence: no control differs from tiny: with distillation.alpha 0 a student learns from labels "
                "alone, as Direct does, and a first stage is taught by the root, as in FromRoot; raise alpha, name "
                "other controls, or remove evidence"
            ],
            id="labels alone",
        ),
        pytest.param(
            {},
            [a_stage("tiny-s2"), a_stage("tiny")],
            [
                'spec.stages[0].name: got "tiny-s2", expected another name; tiny-s2 is a vertex of spec.evidence: '
                "rename the stage"
            ],
            id="name of a seed",
        ),
        pytest.param(
            {},
            [a_stage("evidence"), a_stage("tiny")],
            [
                'spec.stages[0].name: got "evidence", expected another name; evidence is a vertex of spec.evidence: '
                "rename the stage"
            ],
            id="name of the verdict",
        ),
        pytest.param(
            {"stages": "Every", "seeds": 20},
            [a_stage("big"), a_stage("mini"), a_stage("tiny")],
            [
                "spec.evidence.seeds: got 20, expected fewer, because all controls and seeds are 158 Jobs and 100 are "
                "allowed; lower it, or write stages: Last"
            ],
            id="too many",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(evidence: dict[str, Any], stages: list[dict[str, Any]], want: list[str]):
    assert faults(a_plan(evidence, stages=stages)) == want


LAYERS = {"student": {"fromTeacher": {"layers": 2}}}
NUMBERED = {"distillation": {"hidden": {"objective": "ValueRelation", "teacherLayer": 3}}}


@pytest.mark.parametrize(
    "evidence, stages, advised",
    [
        ({}, [a_stage("mini"), a_stage("tiny", **LAYERS)], None),
        ({"controls": ["Direct"]}, [a_stage("mini"), a_stage("tiny", **LAYERS)], None),
        ({"controls": ["Direct"]}, [a_stage("tiny", **LAYERS)], None),
        ({}, [a_stage("six", **LAYERS), a_stage("tiny", **LAYERS)], {"controls": ["FromRoot"]}),
        ({}, [a_stage("mini"), a_stage("tiny", **NUMBERED)], {"controls": ["Direct"]}),
        ({}, [a_stage("mini"), a_stage("tiny", **LAYERS, **NUMBERED)], None),
        ({"stages": "Every"}, [a_stage("mini"), a_stage("two", **LAYERS), a_stage("tiny")], {"stages": "Last"}),
        (
            {"stages": "Every"},
            [a_stage("mini"), a_stage("two", **LAYERS), a_stage("tiny", **NUMBERED)],
            {"controls": ["Direct"], "stages": "Last"},
        ),
    ],
)
def test_the_advice_leads_to_an_accepted_chain(
    evidence: dict[str, Any], stages: list[dict[str, Any]], advised: dict[str, Any] | None
):
    """None: without evidence."""
    words = [f"{key}: {value}".replace("'", "") for key, value in (advised or {}).items()]
    remedy = f"write {' and '.join(words)}" if advised else "remove evidence"
    found = faults(a_plan(evidence, stages=stages))
    assert found
    assert all(fault.endswith(remedy) for fault in found), found
    check_plan(a_plan(evidence | advised if advised else None, stages=stages))
