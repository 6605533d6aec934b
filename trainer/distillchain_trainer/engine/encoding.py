"""Texts to token ids, once for all epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.tokenizing import ControlTokenInText, PlainTextTokenizer, Tokens, unchanged
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings

TOKENIZE_ROWS = 10_000  # rows of one call; bounds the memory of the tokenizer's answer


@dataclass(frozen=True)
class Encoded:
    """Token ids of the rows of one split, each of its own length.

    Attributes:
        kinds: token types (first or second text), or None if the model has none.
    """

    ids: list[NDArray[np.int32]]
    kinds: list[NDArray[np.int32]] | None
    pad_id: int
    pad_left: bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids in self.ids]

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Inputs of a model for some rows, padded to the longest of them."""
        longest = max(len(self.ids[row]) for row in rows)
        shape = (len(rows), longest)
        # int64, as transformers' tokenizers give it. The rows are kept as int32, which takes half the memory.
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        kinds = np.zeros(shape, dtype=np.int64) if self.kinds is not None else None
        for place, row in enumerate(rows):
            size = len(self.ids[row])
            where = slice(longest - size, longest) if self.pad_left else slice(0, size)
            ids[place, where] = self.ids[row]
            mask[place, where] = 1
            if kinds is not None and self.kinds is not None:
                kinds[place, where] = self.kinds[row]
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return inputs | ({} if kinds is None else {"token_type_ids": torch.from_numpy(kinds)})


class Encoder:
    """Encodes each split once per tokenizer: teacher and student often share one."""

    def __init__(self, max_length: int, *, warnings: StageWarnings) -> None:
        self._max_length = max_length
        self._warnings = warnings
        self._done: dict[tuple[str, str, int], Encoded] = {}
        self._kept: list[Any] = []  # tokenizers known by their Python id, which must not be given to another object

    def encode(self, split: Split, tokenizer: Any, *, pad_id: int, check: Callable[[], None] = lambda: None) -> Encoded:
        """The rows of `split`, truncated to the task's length; batches are padded with `pad_id`.

        Warns how many rows were truncated.

        Args:
            check: is called between blocks of rows and may raise.
        Raises: DataInvalid naming a row whose text acts as a control token, if the tokenizer cannot prevent that.
        """
        # pad_id too: it comes from the model's config, so two models may share a tokenizer and pad differently.
        key = (split.name, self._identity(tokenizer), pad_id)
        if key not in self._done:
            self._done[key] = self._encode(split, tokenizer, pad_id, check)
        return self._done[key]

    def _encode(self, split: Split, tokenizer: Any, pad_id: int, check: Callable[[], None]) -> Encoded:
        # The tokenizer knows whether its model was trained with token types; RoBERTa's, for one, has none.
        with_kinds = "token_type_ids" in tokenizer.model_input_names
        plain = PlainTextTokenizer(tokenizer, self._max_length, with_kinds=with_kinds)
        ids: list[NDArray[np.int32]] = []
        kinds: list[NDArray[np.int32]] = []
        truncated = longest = 0
        for start in range(0, len(split), TOKENIZE_ROWS):
            # Signals may be deferred here, and a large split may take longer than the grace period.
            check()
            block = _tokenize(plain, split, start)
            ids += block.ids
            kinds += block.kinds
            truncated += sum(length > self._max_length for length in block.full_lengths)
            longest = max(longest, *block.full_lengths)
        # The number of tokens tells the warnings of teacher and student apart: equal sentences are kept only once.
        if truncated:
            self._warnings.add(
                f"spec.task.maxLength: {truncated} of {len(split)} {split.name} texts have more than "
                f"{self._max_length} tokens and are truncated; the longest has {longest} "
                f"(tokenizer with {len(tokenizer)} tokens)"
            )
        return Encoded(ids, kinds if with_kinds else None, pad_id, tokenizer.padding_side == "left")

    def _identity(self, tokenizer: Any) -> str:
        """A hash that is equal for tokenizers that give the same ids."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # A tokenizer written in Python has no serialization to compare: only the same object counts as equal.
        if backend is None:
            self._kept.append(tokenizer)
            content = str(id(tokenizer))
        else:
            # Truncation and padding that an earlier call has set are serialized too, and make no difference here.
            with unchanged(tokenizer):
                content = backend.to_str()
        parts = (content, tokenizer.padding_side, tokenizer.truncation_side, tuple(tokenizer.model_input_names))
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def _tokenize(plain: PlainTextTokenizer, split: Split, start: int) -> Tokens:
    try:
        return plain.tokenize(split.texts[start : start + TOKENIZE_ROWS])
    except ControlTokenInText as error:
        raise DataInvalid(
            f'{split.place(start + error.row)}: the text has "{error.token}", which this tokenizer reads as a control '
            "token; remove it from the text, or use a checkpoint with a tokenizer.json"
        ) from error
