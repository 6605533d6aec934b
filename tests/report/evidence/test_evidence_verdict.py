"""The three outcomes of a comparison with controls."""

from dataclasses import replace

import numpy as np
import pytest

from distillchain_api.metrics import ACCURACY, MSE, PEARSON
from distillchain_api.resource.evidence import Outcome
from distillchain_report.evidence.paired import SeedRuns, difference
from distillchain_report.evidence.verdict import judge

GAIN = 0.01


def accuracy(*values, shuffle=0, rows=2000):
    """Students of one recipe, one for each accuracy; rows are right in the same order, so that pairs are alike."""
    dice = np.random.default_rng(shuffle)
    parts = np.stack([np.arange(rows) < round(value * rows) for value in np.resize(values, max(3, len(values)))])
    parts = parts.astype(float)
    for row in parts:
        swap = dice.permutation(rows)[: rows // 50]
        row[swap] = np.roll(row[swap], 1)
    return SeedRuns(parts.mean(axis=1), parts)


def test_worth_it():
    found = judge(
        {
            "Direct": difference(accuracy(0.86), accuracy(0.80, shuffle=1)),
            "FromRoot": difference(accuracy(0.86), accuracy(0.83, shuffle=2)),
        },
        ACCURACY,
        smallest_gain=GAIN,
    )
    assert (found.outcome, found.control) == (Outcome.WORTH_IT, "FromRoot")
    assert found.sentence.startswith(
        "The chain is better than FromRoot, the closer of the two controls (difference +3.0"
    )
    assert found.sentence.endswith(": teaching and the steps in between paid.")


@pytest.mark.parametrize(("control", "words"), [("Direct", "teaching"), ("FromRoot", "the steps in between")])
def test_the_sentence_names_what_the_control_lacks(control, words):
    better = difference(accuracy(0.86), accuracy(0.80, shuffle=1))
    worse = difference(accuracy(0.80), accuracy(0.86, shuffle=1))

    paid, not_paid = (judge({control: found}, ACCURACY, smallest_gain=GAIN).sentence for found in (better, worse))

    assert paid.endswith(f"): {words} paid.")
    assert not_paid.endswith(f"): {words} did not pay.")


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (0.855, "FromRoot comes so close to the chain that the gain is too small (difference +0.5 points"),
        (0.86, "FromRoot is as good as the chain (difference"),
        (0.90, "FromRoot is better than the chain (difference -4.0 points"),
    ],
)
def test_not_worth_it(control, words):
    gains = {
        "Direct": difference(accuracy(0.86), accuracy(0.70, shuffle=1)),
        "FromRoot": difference(accuracy(0.86), accuracy(control, shuffle=2)),
    }
    found = judge(gains, ACCURACY, smallest_gain=GAIN)
    assert (found.outcome, found.control) == (Outcome.NOT_WORTH_IT, "FromRoot")
    assert found.sentence.startswith(words)


@pytest.mark.parametrize(
    ("value", "half_width", "outcome"),
    [
        (0.012, 0.004, Outcome.WORTH_IT),
        (0.008, 0.004, Outcome.UNDECIDED),
        (0.012, 0.013, Outcome.UNDECIDED),
        (0.004, 0.003, Outcome.NOT_WORTH_IT),
    ],
)
def test_a_certain_gain_has_to_reach_the_smallest_gain(value, half_width, outcome):
    found = difference(accuracy(0.86), accuracy(0.85, shuffle=1))
    found = replace(found, value=value, low=value - half_width, high=value + half_width)

    judgement = judge({"FromRoot": found}, ACCURACY, smallest_gain=GAIN)

    assert judgement.outcome is outcome
    assert ("but perhaps by less than the smallest gain, 1.0 points" in judgement.sentence) == (value == 0.008)


def test_one_control_that_is_not_beaten_leaves_the_verdict_open():
    # Direct is noisier, so that its interval begins lower.
    found = difference(accuracy(0.86), accuracy(0.85, shuffle=1))
    gains = {
        "Direct": replace(found, value=0.03, low=0.001, high=0.059),
        "FromRoot": replace(found, value=0.008, low=0.004, high=0.012),
    }

    judgement = judge(gains, ACCURACY, smallest_gain=GAIN)

    assert (judgement.outcome, judgement.control) == (Outcome.UNDECIDED, "FromRoot")


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        (ACCURACY, "difference +8.0 points, 95 % interval -100.0 to +100.0"),
        (PEARSON, "difference +0.08, 95 % interval -2 to +2"),
        (MSE, "difference +0.08, 95 % interval -3.88 to +4.04"),
    ],
)
def test_an_interval_ends_where_the_metric_ends_and_the_outcome_stays(metric, shown):
    """Two seeds gave an accuracy that was between 388 points worse and 404 points better."""
    wide = difference(accuracy(0.86), accuracy(0.78, shuffle=1))
    wide = replace(wide, value=0.08, low=-3.88, high=4.04, detectable=4.8)

    judgement = judge({"Direct": wide}, metric, smallest_gain=GAIN)

    assert judgement.outcome is Outcome.UNDECIDED
    assert shown in judgement.sentence
    says_none = "these data would not have shown any difference, however large" in judgement.sentence
    assert says_none == (metric is not MSE)
    assert ("the smallest difference that these data would have shown is 4.8" in judgement.sentence) != says_none


def test_undecided_says_how_many_seeds_would_decide():
    gain = difference(accuracy(0.84, 0.86, 0.88), accuracy(0.83, 0.85, 0.86, shuffle=1))
    found = judge({"FromRoot": gain}, ACCURACY, smallest_gain=GAIN)
    assert found.outcome is Outcome.UNDECIDED
    assert found.seeds
    assert found.seeds > 3
    assert f"about {found.seeds} seeds" in found.sentence
    assert "cannot be told apart" in found.sentence


def test_lower_is_better():
    dice = np.random.default_rng(0)
    row = dice.random(500)
    better, worse = (
        SeedRuns(parts.mean(axis=1), parts)
        for parts in (row + level + dice.normal(0, 0.05, (3, 500)) for level in (0.0, 0.2))
    )
    assert judge({"Direct": difference(better, worse)}, MSE, smallest_gain=0.01).outcome is Outcome.WORTH_IT
    assert judge({"Direct": difference(worse, better)}, MSE, smallest_gain=0.01).outcome is Outcome.NOT_WORTH_IT


def test_a_false_worth_it_is_rare():
    """Recipes that are alike: at most 2.5 % of the verdicts may say that the chain paid."""
    dice, false = np.random.default_rng(9), 0
    for _ in range(400):
        row = dice.random(200)
        chain, control = (
            SeedRuns(parts.mean(axis=1), parts)
            for parts in (
                row + dice.normal(0, 0.2, 200) + dice.normal(0, 0.02, (3, 1)) + dice.normal(0, 0.2, (3, 200))
                for _ in range(2)
            )
        )
        false += (
            judge({"FromRoot": difference(chain, control)}, ACCURACY, smallest_gain=GAIN).outcome is Outcome.WORTH_IT
        )
    assert false / 400 < 0.025 + 3 * np.sqrt(0.025 * 0.975 / 400)


@pytest.mark.parametrize("rows", [30, 60, 200])
def test_few_rows_that_all_agree_prove_nothing(rows):
    right = SeedRuns(np.ones(3), np.ones((3, rows)))

    found = judge({"FromRoot": difference(right, right, row_unit=1.0)}, ACCURACY, smallest_gain=0.005)

    assert found.outcome is Outcome.UNDECIDED
    # The rule of three: with no differing row, up to 3 / rows of all rows may differ.
    assert difference(right, right, row_unit=1.0).high == pytest.approx(3.5 / rows, rel=0.1)
    # Rows that would decide are 3.5 / 0.005.
    assert found.rows == pytest.approx(700, rel=0.15)


def test_rarely_differing_rows_are_seldom_called_equal():
    dice = np.random.default_rng(3)

    def outcome():
        # Of 60 rows, the chain is right on all, and the control is wrong on each with a probability of 2 %: 2 points.
        control = np.tile(dice.random(60) > 0.02, (3, 1)).astype(float)
        runs = [SeedRuns(parts.mean(axis=1), parts) for parts in (np.ones((3, 60)), control)]
        return judge({"FromRoot": difference(*runs, row_unit=1.0)}, ACCURACY, smallest_gain=0.005).outcome

    outcomes = [outcome() for _ in range(400)]

    assert np.mean([found is Outcome.NOT_WORTH_IT for found in outcomes]) <= 0.05
