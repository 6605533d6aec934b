"""Token ids put together from those of words are those of whole texts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from later import Later
from trainer.engine.test_encoding import gpt, word_piece
from trainer.parts import FILLERS, GOOD

tokenizing = Later("distillchain_trainer.engine.encoding.tokenizing")
word_cache = Later("distillchain_trainer.engine.encoding.word_cache")

# What a tokenizer may join, cut or drop at the edge of a word: white space of all kinds, control and format characters,
# marks that combine with the letter before, letters whose case or accent depends on others, ideographs.
EDGES = [
    " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u0085", "\x0b", "\x0c", "\x1c", "\x1f", "\x00",
    "\ufffd", "\u200b", "\u200d", "\ufeff", "\u0301", "\u0345", "\u05b4", "\u3099", "e\u0301", "\u00e9", "I\u0307",
    "\u0130", "\u00df", "\u03a3", "\u1e9e", "\u4e2d", "\u4e2d\u6587", "\uac00", "\u1100\u1161", "\U0001f600", "\ufb01",
    ".", ",", "'", "##a", "##", "-", "@user", "[E1]", "a" * 99, "a" * 101,
]  # fmt: skip


def odd_texts(count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    parts = [*EDGES, *FILLERS, *GOOD, " ", " ", " ", " "]
    return ["".join(dice.choices(parts, k=dice.randint(0, 12))) for _ in range(count)]


def with_markers() -> Any:
    tokenizer = word_piece()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    tokenizer.add_tokens(["@user"])
    return tokenizer


def a_cache(asked: list[str]) -> Any:
    """A word has two tokens, whose id is its length. Words that are tokenized are added to `asked`."""

    def word_ids(words: list[str]) -> list[list[int]]:
        asked.extend(words)
        return [[len(word)] * 2 for word in words]

    return word_cache.WordCache(word_ids, word_cache.TokensAround(ids=[[101], [102]], kinds=[0, 0], text_kinds=[0]))


def assert_same(tokenizer: Any, rows: list[tuple[str, ...]], *, max_length: int) -> None:
    found = tokenizing.PlainTextTokenizer(tokenizer, max_length, with_kinds=True).tokenize(rows)
    columns = [[row[column] for row in rows] for column in range(len(rows[0]))]
    want = tokenizer(*columns, truncation=True, max_length=max_length, return_token_type_ids=True)
    whole = tokenizer(*columns)["input_ids"]
    for row, texts in enumerate(rows):
        assert found.ids[row].tolist() == want["input_ids"][row], texts
        assert found.kinds[row].tolist() == want["token_type_ids"][row], texts
        assert found.full_lengths[row] == len(whole[row]), texts


@pytest.mark.parametrize("count", [1, 2, 3, 257, 3_000])
@pytest.mark.parametrize("max_length", [8, 64])
def test_odd_texts_and_pairs_get_the_ids_that_transformers_gives_them(count: int, max_length: int):
    tokenizer = with_markers()
    first, second = odd_texts(count, seed=1), odd_texts(count, seed=2)

    assert_same(tokenizer, [(text,) for text in first], max_length=max_length)
    assert_same(tokenizer, list(zip(first, second, strict=True)), max_length=max_length)


def test_words_that_were_forgotten_are_tokenized_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("distillchain_trainer.engine.encoding.word_cache.MOST_WORDS", 60)
    monkeypatch.setattr("distillchain_trainer.engine.encoding.word_cache.GROUP_CHARS", 200)

    assert_same(with_markers(), [(text,) for text in odd_texts(500, seed=3)], max_length=64)


def test_texts_of_words_that_do_not_repeat_are_tokenized_whole(monkeypatch: pytest.MonkeyPatch):
    dice = random.Random(4)
    texts = [" ".join(f"{dice.getrandbits(64):x}" for _ in range(8)) for _ in range(600)]

    assert a_cache([]).tokens([(text,) for text in texts]) is None
    assert_same(word_piece(), [(text,) for text in texts], max_length=64)


def test_a_word_is_tokenized_once_for_all_texts():
    asked: list[str] = []
    cache = a_cache(asked)

    first, second = cache.tokens([("a good film",), ("a film",)]), cache.tokens([("good a",)])

    assert asked == ["a", "film", "good"]
    assert first.ids.tolist() == [101, 1, 1, 4, 4, 4, 4, 102, 101, 1, 1, 4, 4, 102]
    assert first.sizes.tolist() == [8, 6]
    assert second.ids.tolist() == [101, 4, 4, 1, 1, 102]


def test_a_token_with_a_space_is_found_in_texts():
    tokenizer = word_piece()
    tokenizer.add_tokens(["good film"])

    assert_same(tokenizer, [("a good film",), ("good",)], max_length=64)


def test_a_pipeline_that_looks_beyond_spaces_is_used_for_whole_texts_only():
    assert word_cache.reads_words_alone(word_piece().backend_tokenizer)
    assert not word_cache.reads_words_alone(gpt().backend_tokenizer)
