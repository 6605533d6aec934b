"""Whether predictions are better than guessing, and whether classes without names are in the order of the task."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from chain_builders import a_chain
from distillchain_api.failures import StageError
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_trainer.errors import GateNotMet, LabelMismatch
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.text_classification.chance import best_order, chance_to_beat, doubt_of
from later import Later

numpy = Later("numpy")
text_classification = Later("distillchain_trainer.tasks.text_classification.adapter")
heads = Later("distillchain_trainer.tasks.sequences.heads")
evaluate = Later("distillchain_trainer.tasks.text_classification.evaluate")

DICE = random.Random(0)
BALANCED = [row % 2 for row in range(872)]
RARE = [int(row % 20 == 0) for row in range(1000)]
FOUR = [row % 4 for row in range(1000)]
SEVEN = [row % 7 for row in range(1000)]


def mostly(classes: list[int], share: float) -> list[int]:
    """Right for about this share of rows, else one class further."""
    count = max(classes) + 1
    return [true if DICE.random() < share else (true + 1) % count for true in classes]


def test_chance_of_two_equal_classes():
    reached, needed = chance_to_beat([0, 1] * 50, [0, 1] * 50, metric="accuracy")

    assert reached == 0.5
    assert needed == pytest.approx(0.5 + 1.645 * 0.05)


def test_chance_of_macro_f1_is_the_agreement_of_the_same_predictions_in_any_order():
    # 10 of 100 rows are "1", and 20 are predicted to be: 0.9 * 0.8 + 0.1 * 0.2 = 0.74.
    reached, _ = chance_to_beat([0] * 90 + [1] * 10, [0] * 80 + [1] * 20, metric="macroF1")

    assert reached == pytest.approx(0.74)


@pytest.mark.parametrize("rows", [20, 100, 370])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.98, 0.01, 0.01), (0.4, 0.3, 0.2, 0.1)])
def test_guesses_pass_for_learned_in_one_of_twenty_cases_at_most(rows: int, shares: tuple[float, ...]):
    """Predictions in random order, however skewed they are."""
    dice = random.Random(rows)
    classes = [min(row * len(shares) // rows, len(shares) - 1) for row in range(rows)]
    predicted = dice.choices(range(len(shares)), shares, k=rows)
    _, needed = chance_to_beat(classes, predicted, metric="macroF1")
    shuffles = 2000

    passed = 0
    for _ in range(shuffles):
        dice.shuffle(predicted)
        passed += sum(true == answer for true, answer in zip(classes, predicted, strict=True)) / rows > needed

    assert passed / shuffles < 0.08, "5 %, and the noise of both sets of shuffles"


def test_few_answers_of_a_rare_class_that_are_mostly_right_are_no_luck():
    """363 of 370 predictions were of one class. By a binomial margin, hits that no shuffle reached were luck."""
    classes = [0] * 247 + [1] * 63 + [2] * 60
    predicted = [0] * 247 + [1] * 4 + [0] * 59 + [2] * 3 + [0] * 57

    assert doubt_of(254 / 370, metric="macroF1", classes=classes, predicted=predicted) is None


def test_predictions_that_may_be_guesses_leave_a_doubt():
    classes, guesses = [0] * 6 + [1] * 4, [0] * 10

    assert doubt_of(1.0, metric="accuracy", classes=classes, predicted=classes) is None
    assert doubt_of(0.6, metric="accuracy", classes=classes, predicted=guesses) == (
        "accuracy 0.60 on 10 validation rows could be luck: always naming the most frequent class reaches 0.60, and so "
        "few rows need more than 0.8548"
    )


@pytest.mark.parametrize("count", [2, 3, 6, 7, 8, 20, 100])
@pytest.mark.parametrize("share", [0.25, 0.1])
def test_rotated_classes_are_found_whatever_their_number(count: int, share: float):
    """Up to 0.1 all orders were tried, but for at most six classes."""
    classes = [row % count for row in range(2000)]
    predicted = mostly(classes, share)

    order = best_order(classes, predicted, count=count)

    assert order == tuple((index + 1) % count for index in range(count))


@pytest.mark.parametrize("count", [2, 7, 30, 300])
@pytest.mark.parametrize("seed", range(3))
def test_guesses_fit_no_order_surely(count: int, seed: int):
    """With many classes some order fits even noise well."""
    dice = random.Random(seed)
    classes = [row % count for row in range(900)]

    assert best_order(classes, dice.choices(range(count), k=900), count=count) is None


@pytest.mark.parametrize("count", [2, 7, 30])
@pytest.mark.parametrize("share", [0.6, 0.9, 1.0])
def test_a_right_order_is_kept(count: int, share: float):
    classes = [row % count for row in range(900)]

    assert best_order(classes, mostly(classes, share), count=count) is None


def _check_teacher(classes: list[int], predicted: list[int], *, metric: str, named: bool) -> None:
    labels = [f"class-{index}" for index in range(max(classes) + 1)]
    task = a_chain().spec.task.model_copy(update={"labels": labels, "metric": metric})
    assert isinstance(task, TextClassification)
    outputs = numpy.eye(len(labels), dtype=numpy.float32)[predicted]
    measured = evaluate.Classified(task, "validation", outputs, numpy.array(classes))
    teacher: Any = heads.SequenceModel(None, None, "start", pretrained=True, named=named)
    adapter = text_classification.TextClassificationAdapter(task, StageWarnings())
    adapter.check_teacher(teacher, measured, uri="file:///t", remedy="fine-tune it")


@pytest.mark.models
@pytest.mark.parametrize(
    "classes, predicted, metric, named, want",
    [
        pytest.param(BALANCED, DICE.choices([0, 1], k=872), "macroF1", True, GateNotMet, id="guesses"),
        pytest.param(BALANCED, DICE.choices([0, 1], k=872), "accuracy", True, GateNotMet, id="guesses, by accuracy"),
        pytest.param(BALANCED, mostly(BALANCED, 0.4), "macroF1", True, LabelMismatch, id="turned round"),
        pytest.param(BALANCED, mostly(BALANCED, 0.4), "macroF1", False, LabelMismatch, id="turned round, unnamed"),
        pytest.param(BALANCED, mostly(BALANCED, 0.6), "macroF1", False, None, id="weak, unnamed"),
        pytest.param(RARE, [0] * 1000, "macroF1", True, GateNotMet, id="never predicts the rare class"),
        pytest.param(RARE, [int(row % 10 == 0) for row in range(1000)], "macroF1", True, None, id="finds the rare class"),
        pytest.param(FOUR, [[0, 1, 3, 2][true] for true in mostly(FOUR, 0.9)], "accuracy", False, LabelMismatch, id="two of four swapped"),
        pytest.param(FOUR, mostly(FOUR, 0.5), "accuracy", False, None, id="half right, the others one class further"),
        pytest.param(SEVEN, mostly(SEVEN, 0.25), "accuracy", False, LabelMismatch, id="seven rotated, unnamed"),
        pytest.param(SEVEN, mostly(SEVEN, 0.25), "accuracy", True, None, id="seven rotated, named"),
        pytest.param([0] * 19 + [1], [0] * 19 + [1], "accuracy", True, None, id="all right on few skewed rows"),
        pytest.param([0] * 19 + [1], [0] * 20, "accuracy", True, GateNotMet, id="one class on few skewed rows"),
        pytest.param([0, 0, 1], [0, 0, 1], "macroF1", True, None, id="all right on three rows"),
    ],
)  # fmt: skip
def test_a_teacher_must_beat_chance_in_its_order(
    classes: list[int], predicted: list[int], metric: str, named: bool, want: type[StageError] | None
):
    with pytest.raises(want) if want else contextlib.nullcontext():
        _check_teacher(classes, predicted, metric=metric, named=named)


@pytest.mark.models
def test_swapped_classes_are_named_in_their_probable_order():
    predicted = [[0, 1, 3, 2][true] for true in FOUR]

    with pytest.raises(LabelMismatch) as failure:
        _check_teacher(FOUR, predicted, metric="accuracy", named=False)

    assert str(failure.value) == (
        "teacher file:///t: accuracy 0.50 with LABEL_0, LABEL_1, ... taken as class-0, class-1, class-2, class-3, but "
        "1.00 as class-0, class-1, class-3, class-2: its classes are probably in that order; write their names into "
        "id2label of its config.json"
    )
