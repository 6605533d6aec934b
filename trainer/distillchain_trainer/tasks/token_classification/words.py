"""Calls a tokenizer for sentences that are split into words, and finds the first token of each word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.engine.encoding.encoded import CUT_OFF
from distillchain_trainer.engine.encoding.tokenizing import (
    ControlTokenInText,
    PlainTextTokenizer,
    Texts,
    Tokens,
    unchanged,
    with_renamed_tokens,
)


class WordTokenizer(PlainTextTokenizer):
    """A fast tokenizer with a length limit that gives the place of each word's first token.

    Gives the ids that `tokenizer(words, is_split_into_words=True)` gives, but a word such as "[SEP]" is text.
    """

    def tokenize(self, rows: Sequence[Texts]) -> Tokens:
        """Token ids of some sentences; a word is CUT_OFF if its first token was cut off, or if it has no token.

        Raises: ControlTokenInText.
        """
        encodings = list(self._call(rows, truncation=True, max_length=self._max_length).encodings)
        affected = [row for row, encoding in enumerate(encodings) if self._has_control_token(rows[row], encoding)]
        if affected:
            for row, encoding in zip(affected, self._encode_renamed(rows, affected), strict=True):
                encodings[row] = encoding
        return Tokens(
            ids=[np.array(encoding.ids, dtype=np.int32) for encoding in encodings],
            kinds=[np.array(encoding.type_ids, dtype=np.int32) for encoding in encodings] if self._with_kinds else [],
            full_lengths=[_full_length(encoding) for encoding in encodings],
            positions=[
                _first_tokens(encoding, len(words), truncates_left=self._tokenizer.truncation_side == "left")
                for encoding, words in zip(encodings, rows, strict=True)
            ],
        )

    def _call(self, rows: Sequence[Texts], **options: Any) -> Any:
        with unchanged(self._tokenizer):
            return self._tokenizer(
                [list(words) for words in rows],
                is_split_into_words=True,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=self._with_kinds,
                verbose=False,  # it would warn of the model's limit, but the task's is what counts
                **options,
            )

    def _has_control_token(self, words: Texts, encoding: Any) -> bool:
        unknown = self._tokenizer.unk_token
        # Every unknown word has the id of the unknown token, so its name is looked for in the words instead.
        if unknown and any(unknown in word for word in words):
            return True
        return bool(self._in_words(encoding).any())

    def _in_words(self, encoding: Any) -> NDArray[np.bool_]:
        """Which tokens are control tokens and yet belong to a word [tokens]."""
        of_words = ~np.isnan(np.array(encoding.word_ids, dtype=np.float64))
        found: NDArray[np.bool_] = np.isin(np.array(encoding.ids), self._controls) & of_words
        return found

    def _encode_renamed(self, rows: Sequence[Texts], affected: list[int]) -> list[Any]:
        """The affected sentences, tokenized by a copy whose control tokens have other names."""
        if self._renamed is None:
            with unchanged(self._tokenizer):
                self._renamed = with_renamed_tokens(self._backend, self._names_of_control_tokens())
        self._renamed.enable_truncation(self._max_length, direction=self._tokenizer.truncation_side)
        encodings = self._renamed.encode_batch([list(rows[row]) for row in affected], is_pretokenized=True)
        for row, encoding in zip(affected, encodings, strict=True):
            # The copy should not have any. If it has, a refusal is better than a student that learns from other texts.
            left = self._in_words(encoding)
            if left.any():
                token = self._tokenizer.convert_ids_to_tokens(int(np.array(encoding.ids)[left][0]))
                raise ControlTokenInText(row, str(token))
        return list(encodings)


def _first_tokens(encoding: Any, words: int, *, truncates_left: bool) -> NDArray[np.int32]:
    """The index of the first token of each word [words]."""
    of_words = np.array(encoding.word_ids, dtype=np.float64)  # None becomes NaN
    places = np.flatnonzero(~np.isnan(of_words))
    found, first = np.unique(of_words[places].astype(np.int64), return_index=True)
    positions = np.full(words, CUT_OFF, dtype=np.int32)
    positions[found] = places[first]
    # The word at the cut has lost its first token, if another part of it was cut off.
    if truncates_left and len(found) and any(int(found[0]) in part.word_ids for part in encoding.overflowing):
        positions[found[0]] = CUT_OFF
    return positions


def _full_length(encoding: Any) -> int:
    """Tokens before truncation."""
    # Each part that was cut off has control tokens around it.
    cut_off = sum(len(part) - sum(part.special_tokens_mask) for part in encoding.overflowing)
    return len(encoding) + int(cut_off)
