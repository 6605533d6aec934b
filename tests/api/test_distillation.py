"""What template, stage and task make of the distillation of a stage, and what they refuse together."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.graph import build_plan
from distillchain_api.objectives import BY_OUTPUTS, Objective
from distillchain_api.plan_check import check_plan
from distillchain_api.resource.distillation import (
    DistillationOverrides,
    TemplateDistillation,
    distillation_faults,
    objective_rules,
)
from distillchain_api.resource.spec import parse_chain
from distillchain_api.task import Task
from distillchain_api.tasks.text_classification import TextClassification


class Numbers(TextClassification):
    """A task whose outputs are numbers, with the other fields of a good chain."""

    outputs: ClassVar[Any] = "Numbers"
    default_objective: ClassVar[Objective] = "LogitMSE"


def a_chain(template: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    document["spec"]["template"] = {"distillation": template}
    document["spec"]["stages"][1]["distillation"] = stage
    return document


def resolved(template: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    order = build_plan(parse_chain(a_chain(template, stage))).stages[1].work_order
    assert order.distillation is not None
    return order.distillation.to_document()


def digest(template: dict[str, Any], stage: dict[str, Any]) -> str:
    document = a_chain(template, stage)
    # The digest of a later stage contains that of its teacher, which the template decides too.
    del document["spec"]["stages"][0]
    return build_plan(parse_chain(document)).stages[0].digest


def a_task(kind: type[Task] = TextClassification) -> Task:
    return kind.parse(GOOD["spec"]["task"])


@pytest.mark.parametrize(
    "template, stage, want",
    [
        pytest.param({}, {}, {"objective": "SoftTargets", "temperature": 1.0, "alpha": 1.0}, id="the task's default"),
        pytest.param(
            {"objective": "JensenShannon", "parameters": {"beta": 0.25}, "alpha": 0.5},
            {"temperature": 3.0},
            {"objective": "JensenShannon", "parameters": {"beta": 0.25}, "temperature": 3.0, "alpha": 0.5},
            id="parameters of the template's objective",
        ),
        pytest.param(
            {"objective": "JensenShannon", "parameters": {"beta": 0.25}},
            {"objective": "Decoupled", "parameters": {"nonTargetWeight": 2.0}},
            {"objective": "Decoupled", "parameters": {"nonTargetWeight": 2.0}, "temperature": 1.0, "alpha": 1.0},
            id="parameters of the stage's objective",
        ),
        pytest.param(
            {"temperature": 4.0},
            {"objective": "LogitMSE"},
            {"objective": "LogitMSE", "temperature": 1.0, "alpha": 1.0},
            id="an objective without temperature does not inherit one",
        ),
        pytest.param({"alpha": 0.5}, {"alpha": 0}, {"objective": "SoftTargets", "temperature": 1.0, "alpha": 0.0}, id="0"),
    ],
)  # fmt: skip
def test_a_stage_inherits_what_belongs_to_its_objective(template: Any, stage: Any, want: Any):
    assert resolved(template, stage) == want


def test_a_parameter_at_its_default_gives_the_same_digest_and_another_value_does_not():
    plain = digest({}, {"objective": "JensenShannon"})

    assert digest({}, {"objective": "JensenShannon", "parameters": {"beta": 0.5}}) == plain
    assert digest({"objective": "JensenShannon"}, {}) == plain
    assert digest({}, {"objective": "JensenShannon", "parameters": {"beta": 0.6}}) != plain
    assert digest({"objective": "SoftTargets"}, {}) == digest({}, {})


def test_all_parameters_include_the_defaults():
    chain = parse_chain(a_chain({"objective": "Decoupled", "parameters": {"nonTargetWeight": 2}}, {}))
    distillation = build_plan(chain).stages[0].work_order.distillation

    assert distillation is not None
    assert distillation.all_parameters == {"target_weight": 1.0, "non_target_weight": 2.0}


HIDDEN = {"objective": "ValueRelation", "weight": 0.5}


@pytest.mark.parametrize(
    "template, stage, want",
    [
        pytest.param({}, HIDDEN, {**HIDDEN, "relations": ["Value"]}, id="of the stage"),
        pytest.param(HIDDEN, None, {**HIDDEN, "relations": ["Value"]}, id="of the template"),
        pytest.param(
            HIDDEN, {"objective": "HiddenMSE"}, {"objective": "HiddenMSE", "weight": 1.0}, id="replaced whole"
        ),
        pytest.param(HIDDEN, {"objective": "HiddenMSE", "weight": 0}, None, id="turned off"),
    ],
)
def test_a_stage_replaces_the_hidden_state_term_of_the_template(template: Any, stage: Any, want: Any):
    template = {"hidden": template} if template else {}

    assert resolved(template, {"hidden": stage} if stage else {}).get("hidden") == want


def test_the_hidden_state_term_is_part_of_the_digest_unless_its_weight_is_0():
    stages = [{"hidden": {"objective": "HiddenMSE", **more}} for more in ({}, {"weight": 2}, {"weight": 1.0})]
    one, heavier, same = (digest({}, stage) for stage in stages)

    assert len({digest({}, {}), one, heavier}) == 3
    assert one == same
    assert digest({}, {"hidden": {"objective": "HiddenMSE", "weight": 0}}) == digest({}, {})


def test_a_teacher_that_is_divided_among_processes_cannot_run_beside_its_student():
    document = a_chain({}, {"hidden": HIDDEN})
    document["spec"]["stages"][1]["parallelism"] = {"nodes": 2, "sharding": "Full"}

    with pytest.raises(BadDocument) as refused:
        check_plan(build_plan(parse_chain(document)))

    assert str(refused.value) == (
        'spec.stages[1].parallelism.sharding: got "Full", expected None for stage tiny, which has distillation.hidden; '
        "the teacher for hidden states cannot be divided: remove one of them"
    )


def test_a_task_refuses_objectives_that_cannot_compare_its_outputs():
    template = TemplateDistillation(objective="SoftTargets")
    stages = [DistillationOverrides(), DistillationOverrides(objective="Decoupled")]

    assert [str(fault) for fault in distillation_faults(a_task(Numbers), template, stages)] == [
        'template.distillation.objective: got "SoftTargets", expected LogitMSE for task TextClassification; '
        "the outputs of this task do not fit the others",
        'stages[1].distillation.objective: got "Decoupled", expected LogitMSE for task TextClassification; '
        "the outputs of this task do not fit the others",
    ]
    assert list(distillation_faults(a_task(), template, stages)) == []


def test_a_temperature_without_an_objective_is_checked_against_the_inherited_one():
    stages = [DistillationOverrides(temperature=2.0)]

    found = list(distillation_faults(a_task(Numbers), TemplateDistillation(), stages))
    assert [fault.field for fault in found] == ["stages[0].distillation.temperature"]
    with pytest.raises(BadDocument, match=r"^spec\.stages\[1\]\.distillation\.temperature: got 2\.0, expected 1\.0"):
        parse_chain(a_chain({"objective": "LogitMSE"}, {"temperature": 2.0}))


def test_the_api_server_gets_a_rule_for_each_kind_of_outputs_that_refuses_an_objective():
    rules = list(objective_rules({"Rating": "Numbers", "Naming": "Classes"}))

    assert [rule["fieldPath"] for rule in rules] == [".template.distillation.objective", ".stages"]
    assert all(rule["message"] == "distillation.objective: task Rating expects LogitMSE" for rule in rules)


def test_every_task_type_accepts_its_default_objective():
    from distillchain_api.tasks import task_types

    for task in task_types().values():
        assert task.default_objective in BY_OUTPUTS[task.outputs]
