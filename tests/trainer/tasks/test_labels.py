"""Class names of checkpoints against those of the task."""

from __future__ import annotations

import pytest

from distillchain_trainer.errors import LabelMismatch
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import ClassOrder, match_classes, shorten

LABELS = ["negative", "positive"]
COMPOSED, DECOMPOSED = "f\u00e2ch\u00e9", "fa\u0302che\u0301"


def match(names: list[str], labels: list[str] = LABELS) -> tuple[ClassOrder, list[str]]:
    warnings = StageWarnings()
    return match_classes(
        names, labels, field="spec.teacher.model", uri="x", wanted="another one", warnings=warnings
    ), warnings.sentences


@pytest.mark.parametrize(
    "names, labels, want",
    [
        pytest.param(["negative", "positive"], LABELS, ClassOrder((0, 1), named=True), id="the task's order"),
        pytest.param(["positive", "negative"], LABELS, ClassOrder((1, 0), named=True), id="another order"),
        pytest.param(["LABEL_0", "LABEL_1"], LABELS, ClassOrder((0, 1), named=False), id="unnamed"),
        pytest.param(["calme", DECOMPOSED], [COMPOSED, "calme"], ClassOrder((1, 0), named=True), id="decomposed"),
        pytest.param([COMPOSED, "calme"], ["calme", DECOMPOSED], ClassOrder((1, 0), named=True), id="composed"),
        pytest.param(["a", "A"], ["A", "a"], ClassOrder((1, 0), named=True), id="two that differ in case"),
    ],
)
def test_classes_are_matched_by_name(names: list[str], labels: list[str], want: ClassOrder):
    assert match(names, labels) == (want, [])


def test_class_names_that_differ_in_case_are_matched_with_a_warning():
    order, warnings = match(["POSITIVE", "negative"])

    assert order.columns == (1, 0)
    assert warnings == [
        "spec.teacher.model: the class names of x differ from spec.task.labels in case: POSITIVE for positive"
    ]


def test_the_difference_of_names_that_look_the_same_is_shown():
    with pytest.raises(LabelMismatch) as failure:
        match(["very\u00a0good", "bad"], ["very good", "bad"])

    assert str(failure.value) == (
        "spec.teacher.model: the classes of x are very\u00a0good, bad, spec.task.labels are very good, bad ('very good' "
        "looks like 'very\\xa0good', but its characters differ); write spec.task.labels as its id2label has them, or use "
        "another one"
    )


def test_a_name_that_fits_two_classes_in_another_case_fits_none():
    with pytest.raises(LabelMismatch):
        match(["A", "b"], ["a", "B", "c"])
    with pytest.raises(LabelMismatch):
        match(["Good", "bad"], ["good", "GOOD"])


def test_a_class_name_with_a_comma_is_quoted_where_names_are_listed():
    assert shorten(["hot, dry", "wet"]) == '"hot, dry", wet'
    assert shorten([f"class-{number}" for number in range(7)]).endswith("class-5, ...")
