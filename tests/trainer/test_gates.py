"""Gates and chance, in numbers and whole sentences."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from distillchain_api.failures import StageError
from distillchain_api.resource.spec import Gate, Metric
from distillchain_api.wire.work_order import TeacherRef
from distillchain_trainer.errors import GateNotMet, LabelMismatch
from distillchain_trainer.tasks.text_classification.chance import (
    chance_to_beat,
    check_student,
    check_teacher,
    doubt_of,
    share,
)
from later import Later

sklearn_metrics = Later("sklearn.metrics")


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
    assert share(value, beside) == want


def test_chance_of_two_equal_classes():
    reached, needed = chance_to_beat([0, 1] * 50, [0, 1] * 50, metric="accuracy")

    assert reached == 0.5
    assert needed == pytest.approx(0.5 + 1.645 * 0.05)


def test_chance_of_macro_f1_is_the_agreement_of_the_same_predictions_in_any_order():
    # 10 of 100 rows are "1", and it is said 20 times: 0.9 * 0.8 + 0.1 * 0.2 = 0.74.
    reached, _ = chance_to_beat([0] * 90 + [1] * 10, [0] * 80 + [1] * 20, metric="macroF1")

    assert reached == pytest.approx(0.74)


ROOT = TeacherRef(name="teacher", model="file:///t")
DICE = random.Random(0)
BALANCED = [row % 2 for row in range(872)]
RARE = [int(row % 20 == 0) for row in range(1000)]
FOUR = [row % 4 for row in range(1000)]


def mostly(classes: list[int], share: float) -> list[int]:
    """Right for about this share of rows, else one class further."""
    count = max(classes) + 1
    return [true if DICE.random() < share else (true + 1) % count for true in classes]


@pytest.mark.parametrize(
    "classes, predicted, metric, named, want",
    [
        pytest.param(BALANCED, DICE.choices([0, 1], k=872), "macroF1", True, GateNotMet, id="guesses"),
        pytest.param(BALANCED, DICE.choices([0, 1], k=872), "accuracy", True, GateNotMet, id="guesses, by accuracy"),
        pytest.param(BALANCED, mostly(BALANCED, 0.4), "macroF1", True, GateNotMet, id="turned round"),
        pytest.param(BALANCED, mostly(BALANCED, 0.4), "macroF1", False, LabelMismatch, id="turned round, unnamed"),
        pytest.param(BALANCED, mostly(BALANCED, 0.6), "macroF1", False, None, id="weak, unnamed"),
        pytest.param(RARE, [0] * 1000, "macroF1", True, GateNotMet, id="never says the rare class"),
        pytest.param(RARE, [int(row % 10 == 0) for row in range(1000)], "macroF1", True, None, id="finds the rare class"),
        pytest.param(FOUR, [[0, 1, 3, 2][true] for true in mostly(FOUR, 0.9)], "accuracy", False, LabelMismatch, id="two of four swapped"),
        pytest.param(FOUR, mostly(FOUR, 0.5), "accuracy", False, None, id="half right, the others one class further"),
        pytest.param([0] * 19 + [1], [0] * 19 + [1], "accuracy", True, None, id="all right on few skewed rows"),
        pytest.param([0] * 19 + [1], [0] * 20, "accuracy", True, GateNotMet, id="one class on few skewed rows"),
        pytest.param([0, 0, 1], [0, 0, 1], "macroF1", True, None, id="all right on three rows"),
    ],
)  # fmt: skip
def test_a_teacher_must_beat_chance_in_its_order(
    classes: list[int], predicted: list[int], metric: Metric, named: bool, want: type[StageError] | None
):
    metrics = {
        "accuracy": float(sklearn_metrics.accuracy_score(classes, predicted)),
        "macroF1": float(sklearn_metrics.f1_score(classes, predicted, average="macro", zero_division=0.0)),
    }
    labels = [f"class-{index}" for index in range(max(classes) + 1)]

    with pytest.raises(want) if want else contextlib.nullcontext():
        check_teacher(
            ROOT,
            "file:///t",
            metrics,
            metric=metric,
            classes=classes,
            predicted=predicted,
            labels=labels,
            named=named,
        )


def test_swapped_classes_are_named_in_their_probable_order():
    predicted = [[0, 1, 3, 2][true] for true in FOUR]

    with pytest.raises(LabelMismatch) as failure:
        check_teacher(
            ROOT,
            "file:///t",
            {"accuracy": 0.5, "macroF1": 0.5},
            metric="accuracy",
            classes=FOUR,
            predicted=predicted,
            labels=["a", "b", "c", "d"],
            named=False,
        )

    assert str(failure.value) == (
        "teacher file:///t: accuracy 0.50 with LABEL_0.. taken as a, b, c, d, but 1.00 as a, b, d, c: its classes are "
        "probably in that order; write their names into id2label of its config.json"
    )


def test_what_a_guesser_reaches_leaves_a_doubt():
    classes, guesses = [0] * 6 + [1] * 4, [0] * 10

    assert doubt_of(1.0, metric="accuracy", classes=classes, predicted=classes) is None
    assert doubt_of(0.6, metric="accuracy", classes=classes, predicted=guesses) == (
        "accuracy 0.60 on 10 validation rows is not above chance (0.60 for the most frequent class, 0.8548 with a margin "
        "for so few rows)"
    )


@pytest.mark.parametrize(
    "value, gate, want",
    [
        pytest.param(0.70, {"min_metric": 0.79}, "stage tiny: accuracy 0.70 is under spec.stages[1].gate.minMetric 0.79; train it better or lower the gate: KEPT", id="too low"),
        pytest.param(0.80, {"max_drop": 0.05}, "stage tiny: accuracy 0.80 is 0.11 below its teacher's 0.91, more than spec.stages[1].gate.maxDrop 0.05; step down less, train it better or raise the gate: KEPT", id="too far down"),
        pytest.param(0.86, {"max_drop": 0.05}, None, id="as far down as it may"),
        pytest.param(0.79, {"min_metric": 0.79}, None, id="just enough"),
        pytest.param(0.0, {}, None, id="no gate"),
    ],
)  # fmt: skip
def test_a_student_holds_its_gate_or_is_told_why(value: float, gate: dict[str, Any], want: str | None):
    def check() -> None:
        check_student("tiny", "spec.stages[1]", value, metric="accuracy", gate=Gate(**gate), teacher=0.91, kept="KEPT")

    if want is None:
        check()
    else:
        with pytest.raises(GateNotMet) as failure:
            check()
        assert str(failure.value) == want
