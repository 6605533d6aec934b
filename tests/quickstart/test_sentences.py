"""Which sentences the quick start takes, with which label, in which split; the formats of source and result."""

from __future__ import annotations

import pytest
import sentences
from errors import SourceError
from sentences import Example, Rated


def some_sentences(count: int) -> list[str]:
    return [f"sentence number {number} of this test" for number in range(count)]


def test_the_split_of_a_sentence_does_not_depend_on_case_spacing_and_punctuation() -> None:
    variants = ["A fine film.", "a FINE film", '"A fine  film!"', "A fine film..."]
    assert {sentences.split_of(variant) for variant in variants} == {sentences.split_of("A fine film.")}


@pytest.mark.parametrize(
    ("sentence", "want_split"),
    [
        pytest.param("sentence number 0 of this test", "train", id="train"),
        pytest.param("sentence number 8 of this test", "validation", id="validation"),
        pytest.param("sentence number 22 of this test", "test", id="test"),
    ],
)
def test_the_split_of_a_sentence_is_the_same_on_every_machine(sentence: str, want_split: str) -> None:
    assert sentences.split_of(sentence) == want_split


def test_splits_are_disjoint_and_near_their_shares() -> None:
    rated = [Rated(sentence, 3.0) for sentence in some_sentences(5000)]
    splits = sentences.select([*rated, *rated]).splits
    counts = {split: len(examples) for split, examples in splits.items()}
    assert sum(counts.values()) == len({example.sentence for kept in splits.values() for example in kept}) == 5000
    # 10 % of 5000 is 500; four standard deviations (sqrt(5000 * 0.1 * 0.9) = 21) either way.
    assert abs(counts["validation"] - 500) < 85
    assert abs(counts["test"] - 500) < 85


def test_adding_sentences_does_not_change_the_split_of_others() -> None:
    few = sentences.select(Rated(sentence, 2.0) for sentence in some_sentences(50)).splits
    many = sentences.select(Rated(sentence, 2.0) for sentence in some_sentences(500)).splits
    assert all(example in many[split] for split, examples in few.items() for example in examples)


@pytest.mark.parametrize(
    ("mean_rating", "want_label"),
    [
        pytest.param(-4.0, "negative", id="worst"),
        pytest.param(-1.0, "negative", id="at the limit, below"),
        pytest.param(-0.999, None, id="near-neutral, below"),
        pytest.param(0.0, None, id="neutral"),
        pytest.param(0.999, None, id="near-neutral, above"),
        pytest.param(1.0, "positive", id="at the limit, above"),
        pytest.param(4.0, "positive", id="best"),
    ],
)
def test_the_label_is_the_sign_of_the_rating_and_near_neutral_ratings_have_none(
    mean_rating: float, want_label: str | None
) -> None:
    assert sentences.label_of(mean_rating) == want_label


def test_repeated_sentences_are_kept_once_and_contradicted_ones_are_dropped() -> None:
    rated = [Rated("Good.", 2.0), Rated("good", 3.0), Rated("So so.", 0.2), Rated("Sick!", 2.0), Rated("sick", -2.0)]
    selection = sentences.select(rated)
    kept = [example for examples in selection.splits.values() for example in examples]
    assert kept == [Example("Good.", "positive")]
    assert (selection.near_neutral, selection.repeated, selection.contradicted) == (1, 1, 2)


def test_sentences_without_letters_are_distinguished() -> None:
    assert sentences.identity(":-)") != sentences.identity(":-(")


def test_the_source_is_utf8_with_crlf_and_may_lack_the_last_line_break() -> None:
    data = "\ufeff1\t2.5\tTouché \u2013 Amélie!\r\n1_2\t-0.6\tlone \x85 control\r\n3\t-3\tend".encode()
    want_rated = [Rated("Touché \u2013 Amélie!", 2.5, "1"), Rated("lone control", -0.6, "1_2"), Rated("end", -3.0, "3")]
    assert sentences.parse_ground_truth(data, "movie.txt") == want_rated


@pytest.mark.parametrize(
    ("data", "want_message"),
    [
        pytest.param(
            b"1\t1.0\tgood\n2\t2.0\tTouch\xe9\n",
            "m.txt line 2: byte 0xe9 is not UTF-8; expected UTF-8 text",
            id="latin-1",
        ),
        pytest.param(
            b"1\t1.0\tgood\tbad\n",
            "m.txt line 1: got 4 cells, expected 3 separated by tabs (id, mean rating, text)",
            id="a tab in the text",
        ),
        pytest.param(
            b"1\t1.0\tgood\n\n",
            "m.txt line 2: got 1 cells, expected 3 separated by tabs (id, mean rating, text)",
            id="empty line",
        ),
        pytest.param(
            b"1\tmany\tgood\n",
            "m.txt line 1: mean rating is 'many', expected a number from -4 to 4",
            id="text instead of a number",
        ),
        pytest.param(
            b"1\tnan\tgood\n", "m.txt line 1: mean rating is 'nan', expected a number from -4 to 4", id="not a number"
        ),
        pytest.param(
            b"1\t4.1\tgood\n", "m.txt line 1: mean rating is '4.1', expected a number from -4 to 4", id="out of range"
        ),
        pytest.param(b"1\t2.0\t \r\n", "m.txt line 1: the text is empty, expected a sentence", id="empty text"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(data: bytes, want_message: str) -> None:
    with pytest.raises(SourceError) as raised:
        sentences.parse_ground_truth(data, "m.txt")
    assert str(raised.value) == want_message


@pytest.mark.parametrize(
    ("text", "want_text"),
    [
        pytest.param("Lovely &amp; Amazing", "Lovely & Amazing", id="entity"),
        pytest.param("at &amp;#38; t's", "at & t's", id="entity escaped twice"),
        pytest.param("a\tb\r\nc\u00a0 d\u2028e", "a b c d e", id="white space of all kinds"),
        pytest.param("\"lone and ''two''", "\"lone and ''two''", id="quotation marks"),
        pytest.param("Touché \u2013 5 < 6", "Touché \u2013 5 < 6", id="nothing to clean"),
    ],
)
def test_cleaning_changes_only_entities_and_white_space(text: str, want_text: str) -> None:
    assert sentences.clean(text) == want_text


def test_quotation_marks_are_unchanged_in_the_tsv() -> None:
    examples = [Example('"lone at the start', "negative"), Example('a 5" screen, ""twice""', "positive")]
    want_bytes = b'sentence\tlabel\n"lone at the start\tnegative\na 5" screen, ""twice""\tpositive\n'
    assert sentences.to_tsv(examples) == want_bytes


def test_a_sentence_that_tsv_cannot_represent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^sentence 'two\\tcells': has white space that TSV cannot represent"):
        sentences.to_tsv([Example("two\tcells", "positive")])


def test_the_balance_counts_a_missing_class_as_zero() -> None:
    assert sentences.balance([Example("fine", "positive")]) == {"negative": 0, "positive": 1}
