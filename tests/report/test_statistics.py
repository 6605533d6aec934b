"""Intervals and tests against values worked out by hand and against other ways to reach them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from distillchain_report import statistics
from distillchain_report.statistics import (
    Paired,
    differences,
    f1_intervals,
    macro_f1,
    metric_interval,
    most_different,
    paired,
    retention_interval,
    share_interval,
    softmax,
)
from later import Later

sklearn_metrics = Later("sklearn.metrics")
Classes = NDArray[np.int64]


def some_answers(rows: int, classes: int, *, seed: int, accuracy: float) -> tuple[Classes, Classes]:
    dice = np.random.default_rng(seed)
    truth = dice.integers(0, classes, rows)
    guess = np.where(dice.random(rows) < accuracy, truth, dice.integers(0, classes, rows))
    return truth, guess


def test_mcnemar_is_the_binomial_test_of_the_rows_on_which_one_alone_is_right():
    pair = Paired(both_right=80, only_teacher_right=8, only_student_right=2, both_wrong=10)

    want = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10

    assert pair.p_value == pytest.approx(want) == pytest.approx(0.109375)


def test_two_models_that_never_differ_are_not_told_apart():
    assert Paired(both_right=80, only_teacher_right=0, only_student_right=0, both_wrong=20).p_value == 1.0


def test_the_four_counts_are_of_the_same_rows():
    truth, teacher, student = (np.array(values) for values in ([0, 0, 1, 1, 1], [0, 1, 1, 0, 1], [0, 0, 0, 0, 1]))

    found = paired(truth, teacher, student)

    assert (found.both_right, found.only_teacher_right, found.only_student_right, found.both_wrong) == (2, 1, 1, 1)


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
def test_macro_f1_is_that_of_scikit_learn(classes: int):
    truth, guess = some_answers(300, classes, seed=classes, accuracy=0.6)
    guess[truth == 1] = 0  # a class that is never predicted

    want = sklearn_metrics.f1_score(truth, guess, average="macro", zero_division=0.0)

    assert macro_f1(truth, guess) == pytest.approx(want)


def test_the_interval_of_macro_f1_is_that_of_a_bootstrap_row_by_row():
    truth, guess = some_answers(250, 3, seed=1, accuracy=0.7)
    dice = np.random.default_rng(5)
    values = []
    for _ in range(1500):
        rows = dice.integers(0, 250, 250)
        values.append(macro_f1(truth[rows], guess[rows]))  # is scikit-learn's, as the test above holds
    want = np.quantile(values, [0.025, 0.975])

    assert metric_interval("macroF1", truth, guess) == pytest.approx(tuple(want), abs=0.012)


def test_the_interval_of_a_classs_f1_is_that_of_a_bootstrap_row_by_row():
    truth, guess = some_answers(300, 3, seed=2, accuracy=0.7)
    dice = np.random.default_rng(7)
    values = []
    for _ in range(800):
        rows = dice.integers(0, len(truth), len(truth))
        values.append(
            sklearn_metrics.f1_score(truth[rows], guess[rows], average=None, labels=range(4), zero_division=0.0)
        )
    want = np.quantile(values, [0.025, 0.975], axis=0).T

    found = f1_intervals(truth, guess, 4)

    assert np.array(found) == pytest.approx(want, abs=0.02)
    assert found[3] == (0.0, 0.0), "no row is of this class, none was predicted"


def test_what_a_student_keeps_has_the_interval_of_a_paired_bootstrap():
    truth, teacher = some_answers(400, 2, seed=2, accuracy=0.85)
    _, student = some_answers(400, 2, seed=2, accuracy=0.6)
    dice = np.random.default_rng(6)
    ratios = []
    for _ in range(3000):
        rows = dice.integers(0, 400, 400)
        ratios.append((student[rows] == truth[rows]).mean() / (teacher[rows] == truth[rows]).mean())
    want = np.quantile(ratios, [0.025, 0.975])

    assert retention_interval("accuracy", truth, teacher, student) == pytest.approx(tuple(want), abs=0.012)


def test_a_student_that_answers_as_its_teacher_keeps_all_without_doubt():
    truth, teacher = some_answers(200, 3, seed=3, accuracy=0.8)

    for metric in ("accuracy", "macroF1"):
        assert retention_interval(metric, truth, teacher, teacher) == pytest.approx((1.0, 1.0))


def test_a_thousand_classes_cost_seconds_not_minutes():
    truth, guess = some_answers(5000, 1000, seed=4, accuracy=0.5)

    low, high = metric_interval("macroF1", truth, guess)

    assert 0.4 < low < high < 0.6
    assert statistics.confusion(truth, guess, 1000).sum() == 5000


def test_the_rows_that_differ_most_come_first_and_equal_answers_do_not_differ():
    teacher = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0]])
    student = np.array([[0.1, 0.9], [0.5, 0.5], [0.4, 0.6], [1.0, 0.0]])

    assert differences(teacher, student) == pytest.approx([0.8, 0.0, 0.2, 1.0])
    assert most_different(teacher, student, count=2) == [3, 0]


def test_probabilities_do_not_change_with_a_shift_of_the_logits():
    logits = np.array([[1.0, 2.0, 4.0]], dtype=np.float32)

    assert softmax(logits + 300) == pytest.approx(softmax(logits))
    assert softmax(logits).sum() == pytest.approx(1.0)
