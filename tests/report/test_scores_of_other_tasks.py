"""Intervals, tests and guessers of MultiLabelClassification and Regression, against independent formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import permutation_test, spearmanr

from distillchain_report.sections.multi_label_classification import scores as labels
from distillchain_report.sections.regression import scores as numbers

LABEL_METRICS = ["microF1", "macroF1", "subsetAccuracy", "hammingLoss"]
NUMBER_METRICS = ["pearson", "spearman", "mse", "mae"]


def a_table(rows: int = 200, seed: int = 0):
    dice = np.random.default_rng(seed)
    truth = dice.random((rows, 4)) < [0.6, 0.3, 0.1, 0.05]
    better, worse = (truth ^ (dice.random(truth.shape) < noise) for noise in (0.05, 0.2))
    return truth, worse, better


def some_numbers(rows: int = 120, seed: int = 0):
    dice = np.random.default_rng(seed)
    truth = dice.integers(0, 10, rows) / 2
    return truth, truth + dice.normal(0, 2, rows), truth + dice.normal(0, 1, rows)


@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_no_fixed_set_of_labels_is_better_than_the_guesser(metric: str):
    truth, _, _ = a_table()
    answers = itertools.product([False, True], repeat=4)
    values = [labels.metric_value(metric, truth, np.broadcast_to(answer, truth.shape)) for answer in answers]

    assert labels.constant_answer(metric, truth) == pytest.approx((min if metric == "hammingLoss" else max)(values))


@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_a_clear_difference_of_labels_is_significant_and_none_is_not(metric: str):
    truth, worse, better = a_table()
    low, high = labels.metric_interval(metric, truth, better)

    assert labels.permutation_p_value(metric, truth, worse, better) < 0.01
    assert labels.permutation_p_value(metric, truth, better, better) == 1.0
    assert low < labels.metric_value(metric, truth, better) < high


@pytest.mark.parametrize("metric", NUMBER_METRICS)
def test_a_clear_difference_of_numbers_is_significant_and_none_is_not(metric: str):
    truth, worse, better = some_numbers()
    low, high = numbers.metric_interval(metric, truth, better)

    assert numbers.permutation_p_value(metric, truth, worse, better) < 0.01
    assert numbers.permutation_p_value(metric, truth, better, better) == 1.0
    assert low < numbers.metric_value(metric, truth, better) < high


def test_the_permutation_test_of_ranks_is_the_one_of_scipy():
    truth, teacher, _ = some_numbers(40)
    student = teacher + np.random.default_rng(1).normal(0, 1.5, 40)

    def difference(one, other):
        return spearmanr(truth, one)[0] - spearmanr(truth, other)[0]

    dice = np.random.default_rng(2)
    want = permutation_test((student, teacher), difference, permutation_type="samples", n_resamples=2000, rng=dice)

    assert numbers.permutation_p_value("spearman", truth, teacher, student) == pytest.approx(want.pvalue, abs=0.05)


def test_labels_of_a_model_in_a_bootstrap_keep_their_f1():
    truth, _, better = a_table(600)

    for index, (low, high) in enumerate(labels.f1_intervals(truth, better)):
        hits = (truth & better)[:, index].sum()
        assert low <= 2 * hits / (truth[:, index].sum() + better[:, index].sum()) <= high
