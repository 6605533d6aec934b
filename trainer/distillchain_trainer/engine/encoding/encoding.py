"""Texts to token ids, once for all epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.encoding.encoded_files import Lengths, encode_in_files, encode_in_memory
from distillchain_trainer.engine.encoding.tokenizing import (
    ControlTokenInText,
    PlainTextTokenizer,
    RowRefused,
    Texts,
    Tokens,
    unchanged,
)
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings

TOKENIZE_ROWS = 10_000  # rows of one call; bounds the memory of the tokenizer's answer


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


class RowTokenizer(Protocol):
    """A tokenizer of transformers with a length limit, as a task calls it."""

    def tokenize(self, rows: Sequence[Texts]) -> Tokens:
        """Token ids of some rows, and their items if the task has an output per item.

        Raises: ControlTokenInText, RowRefused.
        """


class Bind(Protocol):
    """Binds a tokenizer to the length limit of a task; a class or a function."""

    __name__: str

    def __call__(self, tokenizer: Any, max_length: int, *, with_kinds: bool) -> RowTokenizer:
        """`with_kinds`: whether token types are wanted."""


class Encoder:
    """Encodes each split once per tokenizer: teacher and student often share one.

    Args:
        bind: how the task calls a tokenizer. By default a row is one or two texts and has no items.
    """

    def __init__(self, max_length: int, *, warnings: StageWarnings, bind: Bind = PlainTextTokenizer) -> None:
        self._max_length = max_length
        self._warnings = warnings
        self._bind = bind
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
        bound = self._bind(tokenizer, self._max_length, with_kinds=with_kinds)
        blocks = _tokenized(bound, split, check)
        lengths = Lengths(self._max_length)
        pad_left = tokenizer.padding_side == "left"
        folder = self._folder(split, tokenizer, pad_id)
        if folder is None:
            encoded = encode_in_memory(blocks, lengths, pad_id=pad_id, pad_left=pad_left)
        else:
            encoded = encode_in_files(folder, blocks, lengths, pad_id=pad_id, pad_left=pad_left, check=check)
        if lengths.truncated:
            self._warn(tokenizer, f"{lengths.truncated} of {len(split)} {split.name} texts", lengths.longest)
        return encoded

    def _folder(self, split: Split, tokenizer: Any, pad_id: int) -> Path | None:
        """Beside the files of the split, and the same for all processes of a node; None: in memory."""
        # A tokenizer written in Python is known by its Python id, which says nothing to another process.
        if split.folder is None or getattr(tokenizer, "backend_tokenizer", None) is None:
            return None
        parts = (self._identity(tokenizer), pad_id, self._max_length, self._bind.__name__, split.name)
        return split.folder / f"encoded-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

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


def _tokenized(bound: RowTokenizer, split: Split, check: Callable[[], None]) -> Iterator[Tokens]:
    for start in range(0, len(split), TOKENIZE_ROWS):
        # Signals may be deferred here, and a large split may take longer than the grace period.
        check()
        yield _tokenize(bound, split, start)


def _tokenize(bound: RowTokenizer, split: Split, start: int) -> Tokens:
    try:
        return bound.tokenize(split.texts[start : start + TOKENIZE_ROWS])
    except ControlTokenInText as error:
        raise DataInvalid(
            f'{split.place(start + error.row)}: the text has "{error.token}", which this tokenizer reads as a control '
            "token; remove it from the text, or use a checkpoint with a tokenizer.json"
        ) from error
    except RowRefused as error:
        raise DataInvalid(f"{split.place(start + error.row)}: {error}") from error
