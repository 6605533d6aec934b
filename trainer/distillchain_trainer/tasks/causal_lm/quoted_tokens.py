"""Control tokens that a message contains as text, such as `<|im_end|>` in a chat about tokenizers.

A template writes its own control tokens around the messages, so both look alike in the rendered chat. Before rendering,
the control tokens in messages are replaced by marks. Afterwards the marks become text again. A copy of the tokenizer,
with other names for its control tokens, then finds only the control tokens of the template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.engine.encoding.tokenizing import names_no_text_has, unchanged, with_renamed_tokens

MARK = "\U0010fffe"
"""A noncharacter, which Unicode reserves for uses like this one: no text should have it."""


class QuotedTokens:
    """Knows the control tokens of one fast tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers have control tokens without a role, such as the headers of Llama 3's chats.
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        names = {name for name in (*tokenizer.all_special_tokens, *added) if len(name) > 1}
        # Longest first: a token may begin as another one does.
        self._names = sorted(names, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, self._names))) if self._names else None
        self._renamed: Any | None = None

    def are_in(self, text: str) -> bool:
        """Whether a text contains a control token."""
        return self._any is not None and self._any.search(text) is not None

    def length_of_first(self, text: str) -> int:
        """Characters of the control token that a text begins with; 0 if it begins with none."""
        found = self._any.match(text) if self._any is not None else None
        return len(found[0]) if found else 0

    def marked(self, text: str) -> str:
        """The text with a mark in place of each control token."""
        assert self._any is not None
        return self._any.sub(lambda found: f"{MARK}{self._names.index(found[0])}{MARK}", text)

    def encode(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids and characters (first, and after the last) of the tokens of a rendered chat with marks. See `place`.

        Raises: ValueError with the name of a control token that is taken for one all the same.
        """
        if self._renamed is None:
            with unchanged(self._tokenizer):
                self._renamed = with_renamed_tokens(self._tokenizer.backend_tokenizer, self._names)
            self._renamed.no_truncation()
        encoding = self._renamed.encode(self._as_text(text), add_special_tokens=False)
        ids = np.asarray(encoding.ids, dtype=np.int32)
        self._check(text, ids)
        return ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)

    def place(self, text: str, character: int) -> int:
        """Where a character of a rendered chat is in what `encode` tokenizes."""
        return len(self._as_text(text[:character]))

    def _as_text(self, text: str) -> str:
        """Control tokens of the template by their other names, marks as the text that they stand for."""
        assert self._any is not None
        new_names = names_no_text_has(self._names)
        renamed = self._any.sub(lambda found: new_names[found[0]], text)
        return re.sub(f"{MARK}(\\d+){MARK}", lambda found: self._names[int(found[1])], renamed)

    def _check(self, text: str, ids: NDArray[np.int32]) -> None:
        # Unknown words have the id of the unknown token, which says nothing.
        names = [name for name in self._names if name != self._tokenizer.unk_token]
        for name, number in zip(names, self._tokenizer.convert_tokens_to_ids(names), strict=True):
            if int((ids == number).sum()) != _count(self._any, text, name):
                raise ValueError(name)


def _count(pattern: re.Pattern[str] | None, text: str, name: str) -> int:
    assert pattern is not None
    found: Sequence[str] = pattern.findall(text)
    return sum(match == name for match in found)
