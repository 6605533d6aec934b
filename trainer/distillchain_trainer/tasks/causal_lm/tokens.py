"""Rows as token ids, and which of the tokens the model learns to predict."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distillchain_api.digests import sha256_of
from distillchain_trainer.engine.encoding.tokenizing import (
    PlainTextTokenizer,
    RowRefused,
    Texts,
    Tokens,
    unchanged,
)
from distillchain_trainer.tasks.causal_lm.chat import ChatRefused, ChatRenderer

Form: TypeAlias = Literal["text", "completion", "messages"]
"""What a row is: a plain text, a prompt with its completion, or a chat as JSON."""

LEAD = "\n"  # no letter, which would become part of the word after it

Ids: TypeAlias = NDArray[np.int32]
Learned: TypeAlias = tuple[Ids, NDArray[np.int64]]
"""Token ids of a row, and the indices of those that are predicted."""


class NextTokenTokenizer:
    """A tokenizer with a length limit. Each predicted token is an item, at the position of the token before it.

    A plain text is predicted from its second token on, of a prompt with completion the completion, of a chat what the
    assistant says. Plain texts and completions get an end-of-text token, which is predicted too; a chat template writes
    its own. What the tokenizer puts around a text, or before its first word, stays at its start alone.

    Args:
        name: what messages call the checkpoint of the tokenizer.
    """

    def __init__(self, form: Form, tokenizer: Any, max_length: int, *, with_kinds: bool, name: str) -> None:
        self._form = form
        self._max_length = max_length
        self._with_kinds = with_kinds
        # The whole text is needed, to see how much of it is cut off and to keep the end-of-text token apart.
        self._plain = PlainTextTokenizer(tokenizer, sys.maxsize, with_kinds=False)
        self._end = tokenizer.eos_token_id
        self._before, self._after = _tokens_around(tokenizer)
        self._lead = self._find_lead()
        self._chat = ChatRenderer(tokenizer, name=name) if form == "messages" else None

    def tokenize(self, rows: Sequence[Texts]) -> Tokens:
        """Token ids and items of some rows. Raises: ControlTokenInText, RowRefused."""
        if self._form == "text":
            learned = self._texts(rows)
        elif self._form == "completion":
            learned = self._completions(rows)
        else:
            learned = self._chats(rows)
        ids, positions, item_ids = [], [], []
        for row_ids, predicted in learned:
            cut = row_ids[: self._max_length]
            # The first token has none before it that it could be predicted from.
            kept = predicted[(predicted > 0) & (predicted < len(cut))]
            ids.append(cut)
            positions.append((kept - 1).astype(np.int32))
            item_ids.append(cut[kept])
        kinds = [np.zeros(len(row), dtype=np.int32) for row in ids] if self._with_kinds else []
        return Tokens(ids, kinds, [len(row) for row, _ in learned], positions, item_ids)

    def _texts(self, rows: Sequence[Texts]) -> list[Learned]:
        found = []
        for row in self._plain.tokenize(rows).ids:
            ids = self._ended(row[: len(row) - self._after])
            found.append((ids, np.arange(len(ids))))
        return found

    def _completions(self, rows: Sequence[Texts]) -> list[Learned]:
        # Apart, so that the tokens of a prompt never depend on its completion, as they will not in use.
        prompts = self._plain.tokenize([(prompt,) for prompt, _ in rows]).ids
        completions = self._inner_ids([completion for _, completion in rows])
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            start = len(prompt) - self._after
            own = self._ended(completion)
            found.append((np.concatenate([prompt[:start], own]), np.arange(start, start + len(own))))
        return found

    def _inner_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts as they are read after others."""
        led = self._bare_ids([self._lead + text for text in texts])
        (lead,) = self._bare_ids([self._lead])
        return [
            # Where the text merges with the lead, such as a line end with another, it is read alone.
            ids[len(lead) :] if np.array_equal(ids[: len(lead)], lead) else self._bare_ids([text])[0]
            for ids, text in zip(led, texts, strict=True)
        ]

    def _find_lead(self) -> str:
        """A text after which others are read without what is put before a text; empty where nothing is.

        Tokenizers made by SentencePiece, such as Llama 2's, put a space before a text.
        """
        lead, alone, led = (ids.tolist() for ids in self._bare_ids([LEAD, "a", LEAD + "a"]))
        return LEAD if lead and led[: len(lead)] == lead and led[len(lead) :] != alone else ""

    def _bare_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Token ids of texts without those around them."""
        return [row[self._before : len(row) - self._after] for row in self._plain.tokenize([(it,) for it in texts]).ids]

    def _chats(self, rows: Sequence[Texts]) -> list[Learned]:
        assert self._chat is not None
        found = []
        for number, (chat,) in enumerate(rows):
            try:
                found.append(self._chat.tokenize(json.loads(chat)))
            except ChatRefused as error:
                raise RowRefused(number, str(error)) from error
        return found

    def _ended(self, ids: Ids) -> Ids:
        return np.append(ids, np.int32(self._end))


def _tokens_around(tokenizer: Any) -> tuple[int, int]:
    """How many tokens a tokenizer puts before and after a text."""
    with unchanged(tokenizer):
        mask = list(tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"])
    if 0 not in mask:  # a tokenizer without this letter and without a token for unknown ones
        return 0, 0
    return mask.index(0), mask[::-1].index(0)


def reading_hash(tokenizer: Any) -> str:
    """A hash that is equal for tokenizers that read every row as the same tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with unchanged(tokenizer):
        content = _saved(tokenizer) if backend is None else backend.to_str()
    # Texts are read without padding.
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    return sha256_of([content, tokenizer.chat_template, tokens, list(tokenizer.model_input_names)])


def _saved(tokenizer: Any) -> dict[str, str]:
    """The files of a tokenizer that is written in Python. They also say what makes no difference."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes().hex() for path in Path(folder).iterdir() if path.is_file()}
