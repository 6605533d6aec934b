"""Entities as seqeval counts them; intervals, the permutation test and the errors of taggers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from distillchain_report import alike_rows
from distillchain_report.sections.token_classification import scores
from distillchain_report.sections.token_classification.details import count_errors, worst_sentences
from distillchain_report.sections.token_classification.entities import Scheme, f1_of, find_entities
from distillchain_report.sections.token_classification.predictions import Predictions

LABELS = ["O", "B-person", "I-person", "B-creative-work", "I-creative-work", "B-place", "I-place"]
FROM_SEQEVAL = [json.loads(line) for line in Path(__file__).with_name("seqeval-1.2.2.jsonl").read_text().splitlines()]
"""Random taggings, and what seqeval 1.2.2 computes for them with its default mode (precision, recall, F1, support)."""


def answers_of(labels: list[str], predicted: list[str]) -> Predictions:
    """Sentences as tags with blanks between them."""
    truth, guesses = ([[LABELS.index(tag) for tag in line.split()] for line in lines] for lines in (labels, predicted))
    return Predictions(
        np.array(list(itertools.chain(*truth))),
        np.array(list(itertools.chain(*guesses))),
        np.cumsum([0, *map(len, truth)]),
        Scheme.of(LABELS),
    )


def random_answers(seed: int, *, accuracy: float, sentences: int = 60, model: int = 0) -> Predictions:
    """Random sentences, the same for all models of a seed, and what a tagger with this accuracy predicts."""
    dice, noise = np.random.default_rng(seed), np.random.default_rng([seed, model, int(1000 * accuracy)])
    starts = np.cumsum([0, *dice.integers(1, 12, sentences)])
    truth = dice.choice(len(LABELS), size=starts[-1], p=[0.4, *[0.1] * 6])
    wrong = noise.random(len(truth)) > accuracy
    predicted = np.where(wrong, noise.integers(0, len(LABELS), len(truth)), truth)
    return Predictions(truth, predicted, starts, Scheme.of(LABELS))


@pytest.mark.parametrize("case", FROM_SEQEVAL, ids=map(str, range(len(FROM_SEQEVAL))))
def test_entities_are_counted_as_seqeval_counts_them(case):
    answers = answers_of(case["labels"], case["predicted"])
    counts = answers.counts

    assert counts.f1 == pytest.approx(case["f1"], abs=1e-8)
    assert scores.ratio_of("entityF1", answers).value == pytest.approx(case["f1"], abs=1e-8)
    assert scores.ratio_of("tokenAccuracy", answers).value == pytest.approx(case["accuracy"], abs=1e-8)
    for kind, (precision, recall, f1, support) in case["kinds"].items():
        index = answers.scheme.kinds.index(kind)
        right, predicted, true = (
            int(column[:, index].sum()) for column in (counts.right, counts.predicted, counts.true)
        )
        assert true == support
        assert right / max(predicted, 1) == pytest.approx(precision, abs=1e-8)
        assert right / max(true, 1) == pytest.approx(recall, abs=1e-8)
        assert f1_of(right, predicted, true) == pytest.approx(f1, abs=1e-8)


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("O O", []),
        ("B-person I-person O", [(0, 2, "person")]),
        ("B-person B-person", [(0, 1, "person"), (1, 2, "person")]),
        ("B-person I-place", [(0, 1, "person"), (1, 2, "place")]),
        ("O I-place I-place", [(1, 3, "place")]),
        ("I-place O I-place", [(0, 1, "place"), (2, 3, "place")]),
        ("B-creative-work I-creative-work", [(0, 2, "creative-work")]),
    ],
)
def test_where_entities_begin_and_end(tags, expected):
    answers = answers_of([tags], [tags])

    found = find_entities(answers.truth, answers.starts, answers.scheme)

    kinds = [answers.scheme.kinds[kind] for kind in found.kind]
    assert list(zip(found.start.tolist(), found.end.tolist(), kinds, strict=True)) == expected


def test_no_entity_goes_on_in_the_next_sentence():
    answers = answers_of(["O B-place", "I-place O"], ["O B-place", "I-place O"])

    assert len(find_entities(answers.truth, answers.starts, answers.scheme)) == 2


@pytest.mark.parametrize("seed", range(5))
def test_the_permutation_test_agrees_with_all_ways_to_swap_sentences(seed):
    teacher, student = (random_answers(seed, accuracy=share, sentences=9) for share in (0.9, 0.6))
    theirs, ours = (scores.ratio_of("entityF1", answers) for answers in (teacher, student))
    measured = abs(ours.value - theirs.value)
    as_large = 0
    for swapped in itertools.product([False, True], repeat=teacher.sentences):
        swap = np.array(swapped)
        above = [np.where(swap, b, a) for a, b in ((theirs.above, ours.above), (ours.above, theirs.above))]
        below = [np.where(swap, b, a) for a, b in ((theirs.below, ours.below), (ours.below, theirs.below))]
        ratios = [up.sum() / down.sum() if down.sum() else 0.0 for up, down in zip(above, below, strict=True)]
        as_large += abs(ratios[1] - ratios[0]) >= measured - 1e-9

    assert scores.permutation_p_value(theirs, ours) == pytest.approx(as_large / 2**teacher.sentences, abs=1e-9)


def test_random_swaps_agree_with_listing_them(monkeypatch: pytest.MonkeyPatch):
    theirs, ours = (scores.ratio_of("entityF1", random_answers(3, accuracy=share, sentences=9)) for share in (0.8, 0.7))
    exact = scores.permutation_p_value(theirs, ours)

    monkeypatch.setattr(alike_rows, "EXACT_OUTCOMES", 0)

    assert scores.permutation_p_value(theirs, ours) == pytest.approx(exact, abs=0.02)


def test_equal_models_do_not_differ_and_a_much_worse_one_does():
    good, poor = (scores.ratio_of("entityF1", random_answers(1, accuracy=share)) for share in (0.95, 0.3))

    assert scores.permutation_p_value(good, good) == 1.0
    assert scores.permutation_p_value(good, poor) < 0.001


def test_equally_good_models_are_rarely_called_different():
    """At the 5 % level about one pair in twenty differs: the test is neither too bold nor useless."""
    pairs = [
        [scores.ratio_of("entityF1", random_answers(seed, accuracy=0.8, sentences=40, model=model)) for model in (1, 2)]
        for seed in range(200)
    ]
    significant = sum(scores.permutation_p_value(*pair, permutations=400) < 0.05 for pair in pairs)

    assert 2 <= significant <= 20


@pytest.mark.parametrize("metric", ["entityF1", "tokenAccuracy"])
def test_an_interval_covers_its_value_and_narrows_with_more_sentences(metric):
    few, many = (scores.ratio_of(metric, random_answers(2, accuracy=0.8, sentences=count)) for count in (50, 800))

    for ratio in (few, many):
        low, high = scores.interval(ratio)
        assert low < ratio.value < high
    width = [high - low for low, high in map(scores.interval, (few, many))]
    assert width[1] < width[0] / 2.5


def test_the_kept_share_of_a_model_beside_itself_is_one():
    ratio = scores.ratio_of("entityF1", random_answers(2, accuracy=0.8))

    assert scores.retention_interval(ratio, ratio) == (1.0, 1.0)


def test_tags_in_random_order_find_few_entities():
    answers = random_answers(4, accuracy=1.0)

    assert answers.counts.f1 == 1.0
    assert 0 < scores.chance_level("entityF1", answers) < 0.2
    assert scores.chance_level("tokenAccuracy", answers) == pytest.approx((answers.truth == 0).mean())


def test_errors_are_counted_by_what_is_wrong():
    answers = answers_of(
        ["B-person I-person O B-place O", "B-place O B-creative-work I-creative-work O", "O B-person O O"],
        ["B-place I-place O B-place O", "O O B-creative-work O O", "O B-person O B-place"],
    )

    errors = count_errors(answers)

    assert errors.model_dump() == {"other_kind": 1, "other_words": 1, "missed": 1, "invented": 1}
    assert worst_sentences(answers.counts) == [1, 0, 2]
