"""Intervals and tests of classifiers, against values worked out by hand and against independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from distillchain_report.sections.text_classification import scores
from distillchain_report.sections.text_classification.predictions import distances, most_different, softmax
from distillchain_report.sections.text_classification.scores import (
    chance_level,
    f1_intervals,
    metric_interval,
    permutation_p_value,
    retention_interval,
)
from distillchain_report.statistics import share_interval
from later import Later
from report.stores import macro_f1

sklearn_metrics = Later("sklearn.metrics")
Classes = NDArray[np.int64]


def some_answers(rows: int, classes: int, *, seed: int, accuracy: float) -> tuple[Classes, Classes]:
    dice = np.random.default_rng(seed)
    truth = dice.integers(0, classes, rows)
    return truth, noisy(truth, classes, accuracy, dice)


def noisy(truth: Classes, classes: int, accuracy: float, dice: np.random.Generator) -> Classes:
    return np.where(dice.random(len(truth)) < accuracy, truth, dice.integers(0, classes, len(truth)))


def swapped_row_by_row(
    metric: str, truth: Classes, teacher: Classes, student: Classes, swap: NDArray[np.bool_]
) -> float:
    """The absolute difference of the metric after answers were swapped in some rows."""
    measure = macro_f1 if metric == "macroF1" else lambda truth, predicted: float((truth == predicted).mean())
    ours, theirs = np.where(swap, teacher, student), np.where(swap, student, teacher)
    return abs(measure(truth, ours) - measure(truth, theirs))


def test_the_permutation_test_of_accuracy_is_mcnemars_exact_test():
    """8 rows on which only the teacher is right, 2 on which only the student is."""
    truth = np.zeros(100, dtype=np.int64)
    teacher, student = truth.copy(), truth.copy()
    student[:8], teacher[8:10], teacher[90:], student[90:] = 1, 1, 1, 2  # both wrong on the last 10, differently

    want = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10

    assert permutation_p_value("accuracy", truth, teacher, student) == pytest.approx(want) == pytest.approx(0.109375)


@pytest.mark.parametrize("metric", ["accuracy", "macroF1"])
def test_the_permutation_test_agrees_with_swapping_row_by_row(metric: str):
    truth, teacher = some_answers(120, 3, seed=11, accuracy=0.7)
    student = noisy(truth, 3, 0.55, np.random.default_rng(12))
    dice = np.random.default_rng(13)
    measured = swapped_row_by_row(metric, truth, teacher, student, np.zeros(120, dtype=bool))
    draws = [swapped_row_by_row(metric, truth, teacher, student, dice.random(120) < 0.5) for _ in range(1000)]
    want = np.mean(np.array(draws) >= measured - 1e-9)
    assert 0.02 < want < 0.5, "a case in which an error would show"

    found = permutation_p_value(metric, truth, teacher, student)

    assert found == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / 1000))


def test_with_few_differing_rows_the_permutation_test_is_exact():
    truth, teacher = some_answers(60, 3, seed=14, accuracy=0.8)
    student = teacher.copy()
    student[:8] = (student[:8] + 1) % 3
    measured = swapped_row_by_row("macroF1", truth, teacher, student, np.zeros(60, dtype=bool))
    outcomes = []
    for swaps in itertools.product([False, True], repeat=8):
        swap = np.zeros(60, dtype=bool)
        swap[:8] = swaps
        outcomes.append(swapped_row_by_row("macroF1", truth, teacher, student, swap) >= measured - 1e-9)

    assert permutation_p_value("macroF1", truth, teacher, student) == pytest.approx(np.mean(outcomes))


def test_the_permutation_test_of_macro_f1_keeps_its_error_rate_with_unequal_classes():
    """Two models that are equally good by construction; 5 % of the tests may call them different."""
    dice = np.random.default_rng(15)
    simulations, significant = 400, 0
    for _ in range(simulations):
        truth = dice.choice(3, size=150, p=[0.7, 0.2, 0.1])
        teacher, student = noisy(truth, 3, 0.75, dice), noisy(truth, 3, 0.75, dice)
        significant += permutation_p_value("macroF1", truth, teacher, student, permutations=499) <= 0.05

    assert significant / simulations <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / simulations)


def test_a_rise_of_macro_f1_is_significant_where_the_drop_of_accuracy_points_the_other_way():
    """The teacher never names the rare class. The student finds all of it, and pays with more frequent rows."""
    truth = np.repeat([0, 1], [900, 100])
    teacher = np.zeros(1000, dtype=np.int64)
    student = truth.copy()
    student[:130] = 1

    assert scores.difference("macroF1", truth, teacher, student) > 0.2
    assert permutation_p_value("macroF1", truth, teacher, student) < 0.001
    assert scores.difference("accuracy", truth, teacher, student) == pytest.approx(-0.03)
    assert permutation_p_value("accuracy", truth, teacher, student) > 0.05


@pytest.mark.parametrize("metric", ["accuracy", "macroF1"])
def test_two_models_with_the_same_answers_do_not_differ(metric: str):
    truth, teacher = some_answers(50, 3, seed=16, accuracy=0.7)

    assert permutation_p_value(metric, truth, teacher, teacher) == 1.0


@pytest.mark.parametrize(
    "hits, rows, want",
    [
        # Wilson's formula by hand: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
        pytest.param(8, 10, (0.490162, 0.943318), id="few rows"),
        pytest.param(0, 10, (0.0, 0.277533), id="never right"),
        pytest.param(872, 872, (0.995614, 1.0), id="always right"),
    ],
)
def test_shares_have_wilson_intervals(hits: int, rows: int, want: tuple[float, float]):
    assert share_interval(hits, rows) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_macro_f1_is_that_of_scikit_learn_over_the_classes_that_occur(classes: int):
    truth, guess = some_answers(300, classes, seed=classes, accuracy=0.6)
    guess[truth == 1] = 0  # a class that is never predicted
    guess[:5] = classes  # and one that never occurs

    want = sklearn_metrics.f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0.0)

    assert macro_f1(truth, guess) == pytest.approx(want)


def test_one_stray_answer_costs_macro_f1_one_row_and_not_a_class():
    truth = np.repeat([0, 1], 500)
    guess = truth.copy()
    guess[0] = 2

    assert macro_f1(truth, guess) == pytest.approx((2 * 499 / 999 + 1) / 2)


@pytest.mark.parametrize("metric", ["accuracy", "macroF1"])
def test_the_chance_level_is_what_guessing_reaches(metric: str):
    """For macro F1: the mean over random orders of the same predictions."""
    dice = np.random.default_rng(17)
    truth, guess = dice.choice(3, 400, p=[0.6, 0.3, 0.1]), dice.choice(3, 400, p=[0.4, 0.4, 0.2])
    if metric == "accuracy":
        want = max(float((truth == constant).mean()) for constant in range(3))
    else:
        want = float(np.mean([macro_f1(truth, dice.permutation(guess)) for _ in range(800)]))

    assert chance_level(metric, truth, guess) == pytest.approx(want, abs=0.003)


def test_coin_tosses_are_at_the_chance_level_of_macro_f1_and_far_above_a_constant_answer():
    dice = np.random.default_rng(18)
    truth, tosses = dice.integers(0, 2, 1000), dice.integers(0, 2, 1000)

    assert macro_f1(truth, np.zeros_like(truth)) == pytest.approx(1 / 3, abs=0.02)
    assert chance_level("macroF1", truth, tosses) == pytest.approx(0.5, abs=0.01)
    assert chance_level("macroF1", truth, np.zeros_like(truth)) == pytest.approx(1 / 3, abs=0.02)


def test_the_interval_of_macro_f1_is_that_of_a_bootstrap_row_by_row():
    truth, guess = some_answers(250, 3, seed=1, accuracy=0.7)
    truth[:2] = 3  # a class so rare that some draws have no row of it
    dice = np.random.default_rng(5)
    values = []
    for _ in range(1500):
        rows = dice.integers(0, 250, 250)
        values.append(macro_f1(truth[rows], guess[rows]))  # over the classes that occur in the draw
    want = np.quantile(values, [0.025, 0.975])

    assert metric_interval("macroF1", truth, guess) == pytest.approx(tuple(want), abs=0.012)


def test_the_interval_of_a_classs_f1_is_that_of_a_bootstrap_row_by_row():
    truth, guess = some_answers(300, 3, seed=2, accuracy=0.7)
    dice = np.random.default_rng(7)
    values = []
    for _ in range(800):
        rows = dice.integers(0, len(truth), len(truth))
        values.append(
            sklearn_metrics.f1_score(truth[rows], guess[rows], average=None, labels=range(3), zero_division=0.0)
        )
    want = np.quantile(values, [0.025, 0.975], axis=0).T

    found = f1_intervals(truth, guess, 4)

    assert np.array(found[:3]) == pytest.approx(want, abs=0.02)
    assert found[3] == (0.0, 0.0), "the class does not occur and is not predicted"


def test_the_share_that_a_student_keeps_has_the_interval_of_a_paired_bootstrap():
    truth, teacher = some_answers(400, 2, seed=2, accuracy=0.85)
    _, student = some_answers(400, 2, seed=2, accuracy=0.6)
    dice = np.random.default_rng(6)
    ratios = []
    for _ in range(3000):
        rows = dice.integers(0, 400, 400)
        ratios.append((student[rows] == truth[rows]).mean() / (teacher[rows] == truth[rows]).mean())
    want = np.quantile(ratios, [0.025, 0.975])

    assert retention_interval("accuracy", truth, teacher, student) == pytest.approx(tuple(want), abs=0.012)


def test_a_student_with_its_teachers_answers_keeps_everything_for_certain():
    truth, teacher = some_answers(200, 3, seed=3, accuracy=0.8)

    for metric in ("accuracy", "macroF1"):
        assert retention_interval(metric, truth, teacher, teacher) == pytest.approx((1.0, 1.0))


@pytest.mark.timeout(60)
def test_a_thousand_classes_take_seconds_not_minutes():
    truth, guess = some_answers(5000, 1000, seed=4, accuracy=0.5)

    low, high = metric_interval("macroF1", truth, guess)

    assert 0.4 < low < high < 0.6
    assert scores.confusion(truth, guess, 1000).sum() == 5000
    assert permutation_p_value("macroF1", truth, truth, guess) < 0.001


def test_the_rows_that_differ_most_come_first():
    teacher = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0]])
    student = np.array([[0.1, 0.9], [0.5, 0.5], [0.4, 0.6], [1.0, 0.0]])

    assert distances(teacher, student) == pytest.approx([0.8, 0.0, 0.2, 1.0])
    assert most_different(teacher, student, count=2) == [3, 0]


def test_probabilities_do_not_change_with_a_shift_of_the_logits():
    logits = np.array([[1.0, 2.0, 4.0]], dtype=np.float32)

    assert softmax(logits + 300) == pytest.approx(softmax(logits))
    assert softmax(logits).sum() == pytest.approx(1.0)
