"""Which labels the quick start derives from single ratings, and the format of sources and result."""

from __future__ import annotations

import pytest
import ratings
from errors import SourceError
from ratings import Labelled
from sentences import Rated, split_of


@pytest.mark.parametrize(
    ("single", "want_labels"),
    [
        pytest.param([1, 1, 1, 1], ["positive"], id="all agree"),
        pytest.param([-1, 1, 1, 1], ["negative", "positive"], id="a quarter disagrees"),
        pytest.param([-1, 1, 1, 1, 1], ["positive"], id="less than a quarter disagrees"),
        pytest.param([0, 0, -2, -2], ["negative", "neutral"], id="neutral is an opinion"),
        pytest.param([-3, -1, -1, 0], ["negative", "neutral", "strong"], id="strong from 3"),
        pytest.param([-4, 4, 0, 0], ["negative", "neutral", "positive", "strong"], id="everything"),
    ],
)
def test_the_labels_are_what_a_quarter_of_the_raters_think(single: list[int], want_labels: list[str]) -> None:
    item = Rated("fine", sum(single) / len(single), "7")
    assert ratings.opinions(item, {"7": single}) == want_labels


def test_sentences_and_ratings_are_matched_by_id() -> None:
    ground_truth = b"2\t3.0\tGreat &amp; big.\r\n1\t-1.5\tDull.\r\n"
    single = "\ufeff1\t-1.5\t0.5\t[-1, -2]\r\n2\t3\t0\t[3, 3]".encode()
    want = [
        Labelled("Great & big.", 3.0, ("film", "positive", "strong")),
        Labelled("Dull.", -1.5, ("film", "negative")),
    ]
    found = ratings.label("movieReviewSnippets", ground_truth, single)
    assert sorted(found, key=lambda item: -item.rating) == want


@pytest.mark.parametrize(
    ("single", "want_message"),
    [
        pytest.param(
            b"1\t2\t0\t[2, 2]\n2\t1\t0\tmany",
            "movieReviewSnippets_anonDataRatings.txt line 2: got 'many', expected ratings such as [1, -2]",
            id="text instead of ratings",
        ),
        pytest.param(
            b"1\t2\t0\t3",
            "movieReviewSnippets_anonDataRatings.txt line 1: got '3', expected ratings such as [1, -2]",
            id="a number instead of ratings",
        ),
        pytest.param(
            b"1\t2\t0\t[1, 1]", "sentence 1: its mean rating is 2, but its ratings are [1, 1]", id="of another sentence"
        ),
        pytest.param(b"9\t2\t0\t[2, 2]", "sentence 1: its mean rating is 2, but its ratings are []", id="missing"),
    ],
)
def test_ratings_that_do_not_belong_to_a_sentence_are_refused(single: bytes, want_message: str) -> None:
    with pytest.raises(SourceError) as raised:
        ratings.label("movieReviewSnippets", b"1\t2\tgood", single)
    assert str(raised.value) == want_message


def test_each_source_gives_the_same_number_of_sentences_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratings, "SENTENCES_PER_SOURCE", 10)
    lines = [f"{number}\t1\tsentence number {number}" for number in range(50)]
    single = "\n".join(f"{number}\t1\t0\t[1]" for number in range(50)).encode()
    found = ratings.label("nytEditorialSnippets", "\n".join(lines).encode(), single)
    again = ratings.label("nytEditorialSnippets", "\n".join(reversed(lines)).encode(), single)
    assert found == again
    assert len(found) == len({item.sentence for item in found}) == 10


def test_repeated_sentences_are_kept_once_in_the_split_of_the_other_files() -> None:
    items = [Labelled("Good.", 2.0, ("film",)), Labelled("good", 3.0, ("news",)), Labelled("Bad.", -2.0, ("film",))]
    splits = ratings.divide(items)
    assert sorted(item.sentence for kept in splits.values() for item in kept) == ["Bad.", "good"]
    assert all(split_of(item.sentence) == split for split, kept in splits.items() for item in kept)


def test_the_table_has_the_mean_rating_and_the_labels() -> None:
    want_bytes = b"sentence\trating\tlabels\nGood.\t2.27\tfilm,positive\n"
    assert ratings.to_tsv([Labelled("Good.", 2.26667, ("film", "positive"))]) == want_bytes
