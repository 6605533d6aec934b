"""Intervals of models that get everything right, or nothing: resampled rows are then all alike, and prove little."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from distillchain_report.sections import causal_lm as tokens_section
from distillchain_report.sections import multi_label_classification as labels_section
from distillchain_report.sections import text_classification as classes_section
from distillchain_report.sections import token_classification as tags_section
from distillchain_report.sections.causal_lm import scores as tokens
from distillchain_report.sections.causal_lm.predictions import TokenPredictions
from distillchain_report.sections.multi_label_classification import scores as labels
from distillchain_report.sections.text_classification import scores as classes
from distillchain_report.sections.token_classification import scores as tags
from distillchain_report.statistics import share_interval
from report.stores import a_report

ALL_OF_40, NONE_OF_40 = share_interval(40, 40), share_interval(0, 40)
# 40 rows of 60 have a label, 20 have none.
LABELS = np.array([[True, False]] * 25 + [[True, True]] * 15 + [[False, False]] * 20)


@pytest.mark.parametrize("section", [classes_section, labels_section, tags_section, tokens_section])
def test_the_page_says_what_the_interval_is(section: ModuleType):
    assert "Where a bootstrap gives only 0, or only 1, the interval is Wilson’s" in section.SECTION.methods


def test_macro_f1_and_the_f1_of_each_class():
    truth = np.array([0] * 25 + [1] * 14 + [2])

    assert classes.metric_interval("macroF1", truth, truth) == ALL_OF_40
    assert classes.metric_interval("macroF1", truth, (truth + 1) % 3) == NONE_OF_40
    of_classes = classes.f1_intervals(truth, truth, 4)
    assert of_classes == [*(share_interval(rows, rows) for rows in (25, 14, 1)), (0.0, 0.0)]
    assert of_classes[2][0] < 0.25, "a single row proves little"


@pytest.mark.parametrize("metric", ["microF1", "macroF1"])
def test_the_f1_of_labels_counts_the_rows_that_have_some(metric: str):
    assert labels.metric_interval(metric, LABELS, LABELS) == ALL_OF_40
    assert labels.metric_interval(metric, LABELS, np.zeros_like(LABELS)) == NONE_OF_40
    assert labels.f1_intervals(LABELS, LABELS) == [ALL_OF_40, share_interval(15, 15)]


def test_hamming_loss_counts_all_rows():
    assert labels.metric_interval("hammingLoss", LABELS, LABELS) == share_interval(0, 60)


def test_entities_count_the_sentences_that_have_some():
    entities = np.array([2] * 40 + [0] * 20)

    assert tags.interval(tags.Ratio(entities, entities)) == ALL_OF_40
    assert tags.interval(tags.Ratio(0 * entities, entities)) == NONE_OF_40


def test_agreement_counts_the_rows_that_have_tokens():
    counts = np.array([3] * 40 + [0] * 20)
    zeros = np.zeros(60)

    assert tokens.metric_interval("teacherAgreement", TokenPredictions(counts, zeros, zeros, counts)) == ALL_OF_40


@pytest.mark.slow
@pytest.mark.parametrize(
    "accuracies, low, high",
    [
        pytest.param((1.0, 1.0), 0.973, 1.0, id="no student can be better than that"),
        pytest.param((0.5, 0.0), 0.0, 0.054, id="nothing right"),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "macroF1"])
def test_rows_that_are_not_there_could_change_a_kept_share(
    tmp_path: Path, accuracies: tuple[float, float], low: float, high: float, metric: str
):
    model = a_report(tmp_path, names=["tiny"], accuracies=accuracies, rows=127, metric=metric).stages[0].model

    assert model is not None
    assert model.retention is not None
    assert (model.retention.low, model.retention.high) == pytest.approx((low, high), abs=0.001)
