"""Label smoothing and class weights in the spec: checked against the task, part of the digest."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.graph import build_plan
from distillchain_api.plan_warnings import warnings_of
from distillchain_api.resource.label_term import label_faults, label_rules
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.training import Training, TrainingOverrides
from distillchain_api.tasks.text_classification import TextClassification


class Numbers(TextClassification):
    """A task whose outputs are numbers, with the other fields of a good chain."""

    outputs: ClassVar[Any] = "Numbers"


def a_chain(template: dict[str, Any], *, stage: dict[str, Any] | None = None, **teacher: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    document["spec"]["template"] = {"training": template}
    document["spec"]["stages"][0]["training"] = stage or {}
    document["spec"]["teacher"] |= teacher
    return document


def faults(document: dict[str, Any]) -> list[str]:
    with pytest.raises(BadDocument) as refused:
        parse_chain(document)
    return [str(fault) for fault in refused.value.faults]


def test_stage_zero_and_the_students_have_them():
    chain = parse_chain(a_chain({"labelSmoothing": 0.1}, fineTune={"classWeights": {"positive": 3}}))

    first, second, _ = (stage.work_order.training for stage in build_plan(chain).stages)

    assert (first.label_smoothing, first.class_weights) == (0.1, {"positive": 3.0})
    assert (second.label_smoothing, second.class_weights) == (0.1, None)


@pytest.mark.parametrize(
    "training", [{"labelSmoothing": 0.1}, {"classWeights": {"positive": 2}}, {"balancedClasses": True}]
)
def test_they_are_part_of_the_digest_where_labels_count(training: dict[str, Any]):
    def digest(training: dict[str, Any], alpha: float) -> str:
        document = a_chain(training)
        document["spec"]["template"]["distillation"] = {"alpha": alpha}
        return build_plan(parse_chain(document)).stages[0].digest

    assert digest(training, 0.5) != digest({}, 0.5)
    assert digest(training, 1) == digest({}, 1), "the loss on the labels has no weight"


WITHOUT_LABELS = "which leaves no weight to the labels"


@pytest.mark.parametrize(
    "chain, alpha, want",
    [
        pytest.param(
            a_chain({}, stage={"labelSmoothing": 0.1}),
            1,
            [
                f"spec.stages[0].training.labelSmoothing has no effect: stage mini has distillation.alpha 1, {WITHOUT_LABELS}"
            ],
            id="a stage",
        ),
        pytest.param(
            a_chain({"classWeights": {"positive": 2}}),
            1,
            [
                f"spec.template.training.classWeights has no effect: all stages have distillation.alpha 1, {WITHOUT_LABELS}"
            ],
            id="the template",
        ),
        pytest.param(a_chain({"balancedClasses": True}, fineTune={}), 1, [], id="stage zero learns from labels"),
        pytest.param(a_chain({"labelSmoothing": 0.1}, stage={"balancedClasses": True}), 0.9, [], id="labels count"),
        pytest.param(a_chain({"labelSmoothing": 0}, stage={"balancedClasses": False}), 1, [], id="they are off"),
    ],
)
def test_fields_of_the_loss_on_labels_without_effect_are_a_warning(
    chain: dict[str, Any], alpha: float, want: list[str]
):
    chain["spec"]["template"]["distillation"] = {"alpha": alpha}

    assert warnings_of(build_plan(parse_chain(chain))) == want


def test_a_weight_of_an_unknown_class_is_refused_wherever_it_stands():
    document = a_chain(
        {"classWeights": {"positiv": 2}},
        stage={"classWeights": {"neutral": 2}},
        fineTune={"classWeights": {"negative": 2, "Negative": 1}},
    )

    assert faults(document) == [
        "spec.template.training.classWeights.positiv: no class of the task; did you mean positive?",
        "spec.stages[0].training.classWeights.neutral: no class of the task; expected one of negative, positive",
        "spec.teacher.fineTune.classWeights.Negative: no class of the task; did you mean negative?",
    ]


def test_a_stage_may_not_add_a_second_way_of_weighing_but_may_turn_the_first_one_off():
    template = {"classWeights": {"positive": 2}}

    assert len(faults(a_chain(template, stage={"balancedClasses": True}))) == 1
    turned_off = parse_chain(a_chain(template, stage={"balancedClasses": True, "classWeights": {}}))
    assert build_plan(turned_off).stages[0].work_order.training.class_weights == {}


def test_a_task_without_exclusive_classes_refuses_all_three():
    task = Numbers.parse(GOOD["spec"]["task"])
    overrides = {"stages[0].training": TrainingOverrides(class_weights={"a": 1.0}, balanced_classes=True)}

    found = list(label_faults(task, Training(label_smoothing=0.1), overrides))

    assert [fault.field for fault in found] == [
        "template.training.labelSmoothing",
        "stages[0].training.classWeights",
        "stages[0].training.balancedClasses",
    ]
    assert str(found[0]) == (
        "template.training.labelSmoothing: got 0.1, expected nothing for task TextClassification, whose loss on the "
        "labels has no classes that exclude each other; remove it"
    )
    assert [rule["fieldPath"] for rule in label_rules({"Rating": Numbers})] == [
        ".template.training",
        ".teacher.fineTune",
        ".stages",
    ]
