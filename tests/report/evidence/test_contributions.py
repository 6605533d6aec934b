"""What each row contributes to a metric: the jackknife, compared with leaving out one row after the other."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from distillchain_report.sections.causal_lm import scores as language
from distillchain_report.sections.causal_lm.predictions import TokenPredictions
from distillchain_report.sections.multi_label_classification import scores as multi_label
from distillchain_report.sections.regression import scores as regression
from distillchain_report.sections.text_classification import scores as classes


def jackknife(value, *columns):
    """Pseudo-values by computing the metric again without each row."""
    rows = len(columns[0])
    kept = [np.arange(rows) != row for row in range(rows)]
    return [rows * value(*columns) - (rows - 1) * value(*(column[keep] for column in columns)) for keep in kept]


SIZES = [(7, 2), (40, 3), (61, 9)]


@pytest.mark.parametrize(("rows", "count"), SIZES)
def test_classes(rows, count):
    dice = np.random.default_rng(rows)
    truth, predicted = dice.integers(0, count, (2, rows))
    truth[: 2 * count] = np.resize(np.arange(count), len(truth[: 2 * count]))  # no class has a single row

    def macro_f1(truth, predicted):
        return metrics.f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0)

    found = classes.contributions("macroF1", truth, predicted)
    if all(np.bincount(truth)[np.unique(truth)] > 1):
        assert found == pytest.approx(jackknife(macro_f1, truth, predicted))
    right = classes.contributions("accuracy", truth, predicted)
    assert right == pytest.approx(jackknife(metrics.accuracy_score, truth, predicted))
    assert right.mean() == pytest.approx(metrics.accuracy_score(truth, predicted))


def test_a_class_with_one_row_does_not_vanish():
    truth, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    found = classes.contributions("macroF1", truth, predicted)
    # Without the last row, class 2 counts as 0 of three classes; one wrong answer fewer for class 0, nothing else.
    f1 = [2 * 2 / (3 + 3), 2 / 3, 0]
    without = [2 * 2 / (3 + 2), 2 / 3, 0]
    assert found[4] == pytest.approx(5 * np.mean(f1) - 4 * np.mean(without))


@pytest.mark.parametrize("metric", ["subsetAccuracy", "hammingLoss", "microF1", "macroF1"])
@pytest.mark.parametrize(("rows", "labels"), SIZES)
def test_multi_label(metric, rows, labels):
    dice = np.random.default_rng(rows)
    truth, predicted = dice.random((2, rows, labels)) < 0.6
    found = multi_label.contributions(metric, truth, predicted)
    assert found == pytest.approx(
        jackknife(lambda truth, predicted: multi_label.metric_value(metric, truth, predicted), truth, predicted)
    )


@pytest.mark.parametrize("metric", ["mse", "mae", "pearson"])
@pytest.mark.parametrize("rows", [5, 33])
def test_regression(metric, rows):
    dice = np.random.default_rng(rows)
    truth = dice.normal(50, 3, rows)
    predicted = truth + dice.normal(0, 2, rows)
    found = regression.contributions(metric, truth, predicted)
    assert found == pytest.approx(
        jackknife(lambda truth, predicted: regression.metric_value(metric, truth, predicted), truth, predicted)
    )


def test_spearman_is_pearson_of_ranks():
    dice = np.random.default_rng(1)
    truth = dice.integers(0, 6, 40).astype(float)
    predicted = truth + dice.normal(0, 1, 40)
    ranks = stats.rankdata(truth), stats.rankdata(predicted)
    found = regression.contributions("spearman", truth, predicted)
    assert found == pytest.approx(regression.contributions("pearson", *ranks))
    assert found.mean() == pytest.approx(stats.spearmanr(truth, predicted).statistic, abs=0.05)


@pytest.mark.parametrize("metric", ["tokenCrossEntropy", "perplexity", "teacherAgreement"])
def test_language(metric):
    dice = np.random.default_rng(2)
    tokens = dice.integers(1, 30, 25)
    logs, agreed = -dice.random(25) * tokens, dice.integers(0, tokens + 1)

    def answers(tokens, logs, agreed):
        return TokenPredictions(tokens, logs, logs, agreed)

    def value(tokens, logs, agreed):
        if metric == "teacherAgreement":
            return agreed.sum() / tokens.sum()
        mean = -logs.sum() / tokens.sum()
        return mean if metric == "tokenCrossEntropy" else np.exp(mean)

    found = language.contributions(metric, answers(tokens, logs, agreed))
    assert found == pytest.approx(jackknife(value, tokens, logs, agreed))


def test_agreement_that_was_not_kept():
    assert (
        language.contributions("teacherAgreement", TokenPredictions(np.ones(3), np.ones(3), np.ones(3), None)) is None
    )
