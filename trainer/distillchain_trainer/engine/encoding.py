"""Texts to token ids, once for all epochs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.data.split import Split
from distillchain_trainer.stage_warnings import StageWarnings

log = logging.getLogger(__name__)

TOKENIZE_ROWS = 10_000  # of one call; bounds the memory of the tokenizer's answer


@dataclass(frozen=True)
class Encoded:
    """Token ids of the rows of one split, each of its own length.

    Attributes:
        kinds: token types (first or second text), or None where the model knows none.
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

    def encode(self, split: Split, tokenizer: Any, *, pad_id: int, check: Callable[[], None] = lambda: None) -> Encoded:
        """The rows of `split`, cut to the task's length; batches are filled with `pad_id`."""
        key = (split.name, _identity(tokenizer), pad_id)
        if key not in self._done:
            self._done[key] = self._tokenize(split, tokenizer, pad_id, check)
        return self._done[key]

    def _tokenize(self, split: Split, tokenizer: Any, pad_id: int, check: Callable[[], None]) -> Encoded:
        with_kinds = "token_type_ids" in tokenizer.model_input_names
        ids: list[NDArray[np.int32]] = []
        kinds: list[NDArray[np.int32]] = []
        for start in range(0, len(split), TOKENIZE_ROWS):
            check()
            rows = split.texts[start : start + TOKENIZE_ROWS]
            with _uncut(tokenizer):
                answer = tokenizer(
                    *([row[column] for row in rows] for column in range(len(rows[0]))),
                    truncation=True,
                    max_length=self._max_length,
                    padding=False,
                    return_attention_mask=False,
                    return_token_type_ids=with_kinds,
                )
            ids += [np.asarray(row, dtype=np.int32) for row in answer["input_ids"]]
            if with_kinds:
                kinds += [np.asarray(row, dtype=np.int32) for row in answer["token_type_ids"]]
        return Encoded(ids, kinds if with_kinds else None, pad_id, tokenizer.padding_side == "left")


def _identity(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with _uncut(tokenizer):
        content = backend.to_str() if backend is not None else str(id(tokenizer))
    parts = (
        content,
        tokenizer.padding_side,
        tokenizer.truncation_side,
        tuple(tokenizer.model_input_names),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@contextmanager
def _uncut(tokenizer: Any) -> Iterator[None]:
    """Within, a tokenizer has no settings of its own for cutting and padding; afterwards it has those of before, which
    are saved with it and which each call would change."""
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
