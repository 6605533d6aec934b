"""The metrics of a classifier against scikit-learn on the classes that occur, and what its predictions warn of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from chain_builders import a_chain
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_trainer.tasks.text_classification.evaluate import Classified

pytestmark = pytest.mark.models


def classified(truth: list[int], predicted: list[int], *, classes: int = 3, metric: Any = "accuracy") -> Classified:
    task = a_chain().spec.task.model_copy(update={"labels": [f"class-{i}" for i in range(classes)], "metric": metric})
    assert isinstance(task, TextClassification)
    outputs = np.eye(classes, dtype=np.float32)[predicted]
    return Classified(task, "validation", outputs, np.array(truth))


def test_one_stray_row_of_a_class_that_never_occurs_costs_one_row_and_not_a_third():
    truth = [0, 1] * 500

    found = classified(truth, [2, *truth[1:]])

    assert found.metrics["accuracy"] == 0.999
    assert found.metrics["macroF1"] == pytest.approx(0.9995, abs=1e-4)


@given(st.data())
def test_accuracy_and_macro_f1_are_scikit_learns_over_the_classes_that_occur_to_the_last_bit(data: st.DataObject):
    classes = data.draw(st.integers(1, 8), label="classes")
    rows = st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=300)
    truth, predicted = map(list, zip(*data.draw(rows, label="truth, predicted"), strict=True))

    got = classified(truth, predicted, classes=classes).metrics

    macro_f1 = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0.0)
    assert got == {"accuracy": accuracy_score(truth, predicted), "macroF1": macro_f1}


def test_classes_that_are_never_predicted_are_named():
    found = classified([0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0])

    assert found.warnings == ["it never predicts 2 of 3 classes of validation: class-1, class-2"]
    assert classified([0, 1, 0, 1], [0, 1, 1, 1]).warnings == [], "a class that does not occur is not missed"


def test_random_guesses_are_in_doubt_with_macro_f1_although_they_beat_the_constant_answer():
    dice = np.random.default_rng(1)
    truth, guesses = ([0] * 300 + [1] * 300), dice.integers(0, 2, 600).tolist()

    found = classified(truth, guesses, classes=2, metric="macroF1")

    assert found.metrics["macroF1"] > 1 / 3 + 0.1
    assert found.doubt is not None
    assert classified(truth, truth, classes=2, metric="macroF1").doubt is None
