"""Calls a tokenizer of transformers so that texts are text: a "[SEP]" in a text does not act as the control token.

Leaves the tokenizer as it was: what a call changes in it would be saved with the student.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.engine.encoding.word_cache import TokensAround, WordCache, groups, reads_words_alone

Texts: TypeAlias = tuple[str, ...]

# Each has a meaning for the model or its head: BART pools at the last end token, decoders at the last token that is no
# padding. Further special tokens, such as markers of entities, are in texts on purpose.
ROLES = ("bos_token", "eos_token", "sep_token", "cls_token", "pad_token", "mask_token")


@dataclass
class Tokens:
    """Some rows as token ids.

    Attributes:
        kinds: token types (first or second text); empty unless they were asked for.
        full_lengths: tokens of each row before truncation.
        positions: items of each row, as in Encoded; None: the task has one output per row.
        item_ids: a token id for each item; None: the items have none.
    """

    ids: list[NDArray[np.int32]]
    kinds: list[NDArray[np.int32]]
    full_lengths: list[int]
    positions: list[NDArray[np.int32]] | None = None
    item_ids: list[NDArray[np.int32]] | None = None

    def append(self, more: Tokens) -> None:
        """Adds rows of the same tokenizer."""
        self.ids += more.ids
        self.kinds += more.kinds
        self.full_lengths += more.full_lengths
        if more.positions is not None:
            self.positions = (self.positions or []) + more.positions
        if more.item_ids is not None:
            self.item_ids = (self.item_ids or []) + more.item_ids

    def replace(self, rows: Sequence[int], others: Tokens) -> None:
        """Puts the rows of `others`, which have no items, in place of some rows."""
        for place, row in enumerate(rows):
            self.ids[row], self.full_lengths[row] = others.ids[place], others.full_lengths[place]
            if self.kinds:
                self.kinds[row] = others.kinds[place]


class ControlTokenInText(ValueError):
    """A tokenizer turns part of a text into a control token, and nothing prevents it."""

    def __init__(self, row: int, token: str) -> None:
        super().__init__(token)
        self.row = row
        self.token = token


class RowRefused(ValueError):
    """A row cannot be tokenized; the message says why and what to do."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row


class PlainTextTokenizer:
    """A tokenizer with a length limit that treats control tokens in texts as text.

    Rows without such tokens are tokenized as they always are. The others are tokenized by a copy with the same ids,
    whose control tokens have names that no text contains. `split_special_tokens` of transformers would not do: it
    also splits markers that were added on purpose, and a Unigram model such as XLM-RoBERTa's has "</s>" in its
    vocabulary and chooses it all the same.
    """

    def __init__(self, tokenizer: Any, max_length: int, *, with_kinds: bool) -> None:
        self._tokenizer = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._max_length = max_length
        self._with_kinds = with_kinds
        self._controls = self._find_control_ids()
        self._renamed: Any | None = None
        self._word_caches: dict[int, WordCache | None] = {}

    def tokenize(self, rows: Sequence[Texts]) -> Tokens:
        """Token ids of some rows. Raises: ControlTokenInText."""
        tokens = Tokens([], [], [])
        for group in groups(rows):
            tokens.append(self._tokenize_group(group))
        affected = self._rows_with_control_tokens(rows, tokens.ids)
        if affected:
            tokens.replace(affected, self._tokenize_renamed(rows, tokens.ids, affected))
        return tokens

    def _tokenize_group(self, rows: Sequence[Texts]) -> Tokens:
        """From words where that gives the same ids; control tokens in texts act as such."""
        words = self._words(len(rows[0]))
        joined = words.tokens(rows) if words is not None else None
        if joined is None:
            return self._tokenize_whole(rows)
        tokens = Tokens(
            _split(joined.ids, joined.sizes),
            _split(joined.kinds, joined.sizes) if self._with_kinds else [],
            joined.sizes.tolist(),
        )
        # Truncation is left to the tokenizer: of a pair, tokens of both texts are cut off.
        too_long = np.flatnonzero(joined.sizes > self._max_length).tolist()
        if too_long:
            tokens.replace(too_long, self._tokenize_whole([rows[row] for row in too_long]))
        return tokens

    def _tokenize_whole(self, rows: Sequence[Texts]) -> Tokens:
        answer = self._call(rows, truncation=True, max_length=self._max_length)
        ids = _arrays(answer["input_ids"])
        kinds = _arrays(answer["token_type_ids"]) if self._with_kinds else []
        return Tokens(ids, kinds, self._full_lengths(rows, ids, answer.encodings))

    def _words(self, texts_per_row: int) -> WordCache | None:
        """None: the ids of this tokenizer cannot be put together from those of words."""
        if texts_per_row not in self._word_caches:
            self._word_caches[texts_per_row] = self._new_word_cache(texts_per_row)
        return self._word_caches[texts_per_row]

    def _new_word_cache(self, texts_per_row: int) -> WordCache | None:
        if self._backend is None or not reads_words_alone(self._backend):
            return None
        (alone,) = self._call([("a",)], add_special_tokens=False)["input_ids"]
        (encoding,) = self._call([("a",) * texts_per_row]).encodings
        around = TokensAround.of(encoding, alone, texts_per_row=texts_per_row)
        return None if around is None else WordCache(self._word_ids, around)

    def _word_ids(self, words: list[str]) -> list[list[int]]:
        # The library's own call: that of transformers makes several Python objects for each word, which costs as much
        # as the tokenization.
        with unchanged(self._tokenizer):
            return [row.ids for row in self._backend.encode_batch_fast(words, add_special_tokens=False)]

    def _find_control_ids(self) -> NDArray[np.int32]:
        found = {getattr(self._tokenizer, f"{role}_id") for role in ROLES}
        if self._backend is not None:  # tokens around a text, also if tokenizer_config.json gives them no role
            (empty,) = self._call([("",)]).encodings
            found |= {index for index, mark in zip(empty.ids, empty.special_tokens_mask, strict=True) if mark}
        # Many texts have the id of unknown words without naming it.
        found -= {None, self._tokenizer.unk_token_id}
        # A single character that has a role, such as a "!" that pads, is part of ordinary texts.
        marks = (index for index in found if len(self._tokenizer.convert_ids_to_tokens(index)) > 1)
        return np.array(sorted(marks), dtype=np.int32)

    def _call(self, rows: Sequence[Texts], **options: Any) -> Any:
        with unchanged(self._tokenizer):
            return self._tokenizer(
                # One list of texts for each column: a pair of texts is given as two lists.
                *([row[column] for row in rows] for column in range(len(rows[0]))),
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=self._with_kinds,
                verbose=False,  # it would warn of the model's limit, but the task's is what counts
                **options,
            )

    def _full_lengths(self, rows: Sequence[Texts], ids: list[NDArray[np.int32]], encodings: Any) -> list[int]:
        lengths = [len(row) for row in ids]
        # Only these can have been truncated.
        full = [row for row, length in enumerate(lengths) if length >= self._max_length]
        # A tokenizer written in Python has no encodings, and so does not keep what it cut off.
        if encodings is not None and len(rows[0]) == 1:
            for row in full:
                cut_off = encodings[row].overflowing  # each part has control tokens around it
                lengths[row] += sum(len(part) - sum(part.special_tokens_mask) for part in cut_off)
        elif full:  # the overflow of a pair has every combination of the parts of both texts
            answer = self._call([rows[row] for row in full])
            for row, untruncated in zip(full, answer["input_ids"], strict=True):
                lengths[row] = len(untruncated)
        return lengths

    def _rows_with_control_tokens(self, rows: Sequence[Texts], ids: list[NDArray[np.int32]]) -> list[int]:
        affected = set(self._rows_with_control_ids(ids, texts_per_row=len(rows[0])))
        # Every unknown word has the id of the unknown token, so its name is looked for in the texts instead.
        unknown = self._tokenizer.unk_token
        if unknown and self._backend is not None:
            affected |= {row for row, texts in enumerate(rows) if any(unknown in text for text in texts)}
        return sorted(affected)

    def _rows_with_control_ids(self, ids: list[NDArray[np.int32]], *, texts_per_row: int) -> list[int]:
        """Rows with more control tokens than the tokenizer puts around empty texts."""
        if not len(self._controls):
            return []
        (empty,) = self._call([("",) * texts_per_row])["input_ids"]
        expected = np.isin(empty, self._controls).sum()
        # Counts per row are differences of running sums: no loop in Python over the tokens of 10,000 rows.
        ends = np.cumsum([len(row) for row in ids])
        starts = np.concatenate([[0], ends[:-1]])
        found = np.concatenate([[0], np.cumsum(np.isin(np.concatenate(ids), self._controls))])
        return [int(row) for row in np.flatnonzero(found[ends] - found[starts] != expected)]

    def _tokenize_renamed(self, rows: Sequence[Texts], ids: list[NDArray[np.int32]], affected: list[int]) -> Tokens:
        """The affected rows, tokenized by a copy whose control tokens have other names. Raises: ControlTokenInText."""
        # Written in Python: there is no serialization in which its tokens could get other names.
        if self._backend is None:
            raise self._refusal(affected[0], rows[affected[0]], ids[affected[0]])
        if self._renamed is None:
            with unchanged(self._tokenizer):
                self._renamed = with_renamed_tokens(self._backend, self._names_of_control_tokens())
        # Called directly, the backend takes a string or a pair for each row.
        inputs = [texts if len(texts) == 2 else texts[0] for texts in (rows[row] for row in affected)]
        self._renamed.no_truncation()
        lengths = [len(encoding) for encoding in self._renamed.encode_batch(inputs)]
        self._renamed.enable_truncation(self._max_length, direction=self._tokenizer.truncation_side)
        encodings = self._renamed.encode_batch(inputs)
        again = _arrays([encoding.ids for encoding in encodings])
        # The copy should not have any. If it has, a refusal is better than a student that learns from other texts.
        left = self._rows_with_control_ids(again, texts_per_row=len(rows[0]))
        if left:
            raise self._refusal(affected[left[0]], rows[affected[left[0]]], again[left[0]])
        return Tokens(again, _arrays([encoding.type_ids for encoding in encodings]), lengths)

    def _names_of_control_tokens(self) -> list[str]:
        unknown = self._tokenizer.unk_token
        names = [*self._tokenizer.convert_ids_to_tokens(self._controls.tolist()), *([unknown] if unknown else [])]
        return sorted({str(name) for name in names})

    def _refusal(self, row: int, texts: Texts, ids: NDArray[np.int32]) -> ControlTokenInText:
        tokens = [str(token) for token in self._tokenizer.convert_ids_to_tokens(ids[np.isin(ids, self._controls)])]
        in_text = (token for token in tokens if any(token in text for text in texts))
        return ControlTokenInText(row, next(in_text, tokens[-1]))


def names_no_text_has(names: Sequence[str]) -> dict[str, str]:
    """Another name for each token."""
    # U+10FFFF is a noncharacter, which Unicode reserves for uses like this one: no text should have it.
    return {name: f"\U0010ffff{index}\U0010ffff" for index, name in enumerate(names)}


def with_renamed_tokens(backend: Any, names: Sequence[str]) -> Any:
    """A copy of a backend with the same ids, in which some tokens have the names of `names_no_text_has`."""
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    new_names = names_no_text_has(names)
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new_names.get(word, word): index for word, index in model["vocab"].items()}
    else:  # Unigram: [piece, score] in the order of the ids
        model["vocab"] = [[new_names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = new_names.get(model["unk_token"], model["unk_token"])
    for token in content["added_tokens"]:
        token["content"] = new_names.get(token["content"], token["content"])
    # The post-processor names control tokens by id, so it stays as it is.
    renamed = Tokenizer.from_str(json.dumps(content))
    renamed.no_padding()
    return renamed


def _arrays(rows: Any) -> list[NDArray[np.int32]]:
    return [np.asarray(row, dtype=np.int32) for row in rows]


def _split(values: NDArray[np.int32], sizes: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    ends = np.cumsum(sizes).tolist()
    return [values[start:stop] for start, stop in pairwise([0, *ends])]


@contextmanager
def unchanged(tokenizer: Any) -> Iterator[None]:
    """Within, a tokenizer has no settings of its own for truncation and padding; afterwards it has its settings again.

    They are saved with a tokenizer, and each call changes them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()
