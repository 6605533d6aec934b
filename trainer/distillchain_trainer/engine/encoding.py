"""Texts to token ids, once for all epochs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.tokenizing import ControlTokenInText, PlainTextTokenizer, Tokens, unchanged
from distillchain_trainer.engine.transfer import row_numbers
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings

TOKENIZE_ROWS = 10_000  # rows of one call; bounds the memory of the tokenizer's answer


@dataclass(frozen=True)
class Encoded:
    """Token ids of the rows of one split, one row after the other without padding.

    Attributes:
        ids: int32 [tokens]; row i has `ids[starts[i]:starts[i + 1]]`.
        starts: int64 [rows + 1].
        kinds: token types (first or second text), int32 [tokens], or None if the model has none.
    """

    ids: Tensor
    starts: Tensor
    kinds: Tensor | None
    pad_id: int
    pad_left: bool

    @classmethod
    def of(
        cls,
        ids: Sequence[NDArray[np.int32]],
        kinds: Sequence[NDArray[np.int32]] | None = None,
        *,
        pad_id: int,
        pad_left: bool = False,
    ) -> Encoded:
        """From one array per row."""
        starts = np.concatenate([[0], np.cumsum([len(row) for row in ids], dtype=np.int64)])
        return cls(_joined(ids), torch.from_numpy(starts), None if kinds is None else _joined(kinds), pad_id, pad_left)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        lengths: list[int] = self.starts.diff().tolist()
        return lengths

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (self.ids, self.starts, self.kinds) if tensor is not None)

    def to(self, device: torch.device) -> Encoded:
        """The same rows on another device."""
        return replace(
            self,
            ids=self.ids.to(device),
            starts=self.starts.to(device),
            kinds=None if self.kinds is None else self.kinds.to(device),
        )

    def batch(self, rows: Sequence[int] | Tensor, *, width: int | None = None) -> dict[str, Tensor]:
        """Inputs of a model for some rows, [rows, width], on the device of the ids.

        Args:
            rows: as a tensor, they and the results stay on the device: nothing waits for a GPU.
            width: tokens of a padded row; needed with a tensor, otherwise by default the longest row.
        """
        if not isinstance(rows, Tensor):
            width = width or max(self.lengths[row] for row in rows)
            rows = row_numbers(rows, self.ids.device)
        assert width is not None
        first = self.starts[rows].unsqueeze(1)
        sizes = self.starts[rows + 1].unsqueeze(1) - first
        column = torch.arange(width, device=self.ids.device).expand(len(rows), width)
        if self.pad_left:
            column = column - (width - sizes)
        inside = (column >= 0) & (column < sizes)
        # Clamped, because the places of padding may lie outside of all rows.
        place = (first + column).clamp(0, len(self.ids) - 1)
        # int64, as transformers' tokenizers give it. The rows are kept as int32, which takes half the memory.
        ids = torch.where(inside, self.ids[place], self.pad_id).long()
        inputs = {"input_ids": ids, "attention_mask": inside.long()}
        return inputs if self.kinds is None else inputs | {"token_type_ids": (self.kinds[place] * inside).long()}


def _joined(rows: Sequence[NDArray[np.int32]]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32))


@dataclass(frozen=True)
class Truncated:
    """The truncated texts of one tokenizer.

    Attributes:
        counts: how many of each split, in words.
        longest: tokens of the longest of them.
        vocabulary: tokens that the tokenizer knows: it tells teacher and student apart.
    """

    counts: tuple[str, ...] = ()
    longest: int = 0
    vocabulary: int = 0

    def sentence(self, max_length: int) -> str:
        """For the user; empty if no text is truncated."""
        if not self.counts:
            return ""
        return (
            f"spec.task.maxLength: texts with more than {max_length} tokens are truncated: {', '.join(self.counts)}; "
            f"the longest has {self.longest} (tokenizer with {self.vocabulary} tokens)"
        )


class Encoder:
    """Encodes each split once per tokenizer: teacher and student often share one."""

    def __init__(self, max_length: int, *, warnings: StageWarnings) -> None:
        self._max_length = max_length
        self._warnings = warnings
        self._done: dict[tuple[str, str, int], Encoded] = {}
        self._truncated: dict[str, Truncated] = {}
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
        if truncated:
            self._warn(tokenizer, f"{truncated} of {len(split)} {split.name} texts", longest)
        left = tokenizer.padding_side == "left"
        return Encoded.of(ids, kinds if with_kinds else None, pad_id=pad_id, pad_left=left)

    def _warn(self, tokenizer: Any, count: str, longest: int) -> None:
        """One sentence for all splits that a tokenizer has read."""
        before = self._truncated.setdefault(self._identity(tokenizer), Truncated())
        now = Truncated((*before.counts, count), max(before.longest, longest), len(tokenizer))
        self._truncated[self._identity(tokenizer)] = now
        self._warnings.replace(before.sentence(self._max_length), now.sentence(self._max_length))

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
