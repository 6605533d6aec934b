"""The rows of one split: texts, targets, a key for each row's texts, and the row's place in its file.

SplitWriter keeps them in files that are mapped into memory. Rows that are few may also be plain lists.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.manifest import SplitFacts
from distillchain_trainer.data.mapped_columns import BLOCK_ROWS, Chained, flat_numbers


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        name: train, validation, test or transfer.
        texts: one or more texts for each row.
        targets: what the label column says for each row, as the task type reads it; JSON values. Unlabelled rows have
            none and come last.
        keys: sha256 of the texts of each row; teacher outputs are stored under it.
        place_prefix: begins the place of each row, such as "file:///data/train.tsv:".
        numbers: ends the place of each row: its line or row number.
        folder: for files that belong to these rows alone, shared by the processes of a node; None: rows are in memory.
        parts: the splits that a joined one consists of, in order; they know the places of their rows.
        left_out: texts that were read and are not among the rows, by reason; see data/unlabelled.py.
        revision: the commit on the hub, where it is another one than that of the data set.
        stored_fingerprints: see `fingerprints`; None: they are computed when they are needed.
    """

    name: str
    texts: Sequence[tuple[str, ...]]
    targets: Sequence[Any]
    keys: Sequence[bytes] = ()
    place_prefix: str = ""
    numbers: Sequence[int] = ()
    parts: tuple[Split, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    folder: Path | None = None
    revision: str | None = None
    stored_fingerprints: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, row: int) -> str:
        """Where a row is, for messages: file and line, or split and row."""
        for part in self.parts:
            if row < len(part):
                return part.place(row)
            row -= len(part)
        return f"{self.place_prefix}{self.numbers[row]}" if len(self.numbers) else f"{self.name}, row {row + 1}"

    def sample(self, size: int, *, name: str) -> Split:
        """Some rows in their order, chosen by their texts alone: always the same, and none by its place in the file."""
        rows = np.sort(np.argsort(self.text_numbers(0, len(self)), kind="stable")[:size]).tolist()
        columns: list[Any] = [self.texts, self.targets, self.keys, self.numbers]
        # Unlabelled rows come last and have no target.
        texts, targets, keys, numbers = ([column[row] for row in rows if row < len(column)] for column in columns)
        return Split(name, texts, targets, keys, self.place_prefix, numbers)

    @cached_property
    def facts(self) -> SplitFacts:
        """For the manifest."""
        # In the order of the rows, because the training depends on it.
        digest = hashlib.sha256()
        for start in range(0, len(self.keys), BLOCK_ROWS):
            digest.update(b"".join(self.keys[start : start + BLOCK_ROWS]))
        # All targets as one JSON list, a block at a time.
        digest.update(b"[")
        for start in range(0, len(self.targets), BLOCK_ROWS):
            values = json.dumps(list(self.targets[start : start + BLOCK_ROWS]))
            digest.update(((", " if start else "") + values[1:-1]).encode())
        digest.update(b"]")
        return SplitFacts(
            rows=len(self), sha256=digest.hexdigest(), left_out=self.left_out or None, revision=self.revision
        )

    def text_numbers(self, start: int, stop: int) -> NDArray[np.uint64]:
        """A number for the text of each of some rows: the first eight bytes of its key."""
        keys = np.frombuffer(b"".join(self.keys[start:stop]), dtype=np.uint64)
        return keys.reshape(-1, 4)[:, 0]

    def flat_targets(self, dtype: Any) -> NDArray[Any]:
        """The targets of all rows in one array, where each row has a list of them."""
        return flat_numbers(self.targets, dtype)

    @cached_property
    def fingerprints(self) -> NDArray[np.int64]:
        """A hash of each row's texts that ignores case, white space and Unicode's normalization forms, [rows]."""
        if self.stored_fingerprints is not None:
            return self.stored_fingerprints
        return np.fromiter(map(fingerprint_of, self.texts), dtype=np.int64, count=len(self))


@dataclass(frozen=True)
class TaskData:
    """All splits of a task, and the unlabelled text that students learn from too."""

    train: Split
    validation: Split
    test: Split | None
    revision: str
    transfer: Split | None = None

    @cached_property
    def taught(self) -> Split:
        """What the teacher answers for and the student learns from: the training rows, then the unlabelled ones."""
        return self.train if self.transfer is None else joined("train and transfer", [self.train, self.transfer])

    @property
    def splits(self) -> dict[str, Split]:
        """By name."""
        found = {"train": self.train, "validation": self.validation}
        return found | ({"test": self.test} if self.test else {})

    @property
    def facts(self) -> dict[str, SplitFacts]:
        """For the manifest, by name."""
        unlabelled = {} if self.transfer is None else {"transfer": self.transfer.facts}
        return {name: split.facts for name, split in self.splits.items()} | unlabelled


def joined(name: str, parts: Sequence[Split]) -> Split:
    """The rows of several splits, one after the other; nothing is copied. Rows without labels must come last."""
    return Split(
        name,
        texts=Chained(tuple(part.texts for part in parts)),
        targets=Chained(tuple(part.targets for part in parts)),
        keys=Chained(tuple(part.keys for part in parts)),
        parts=tuple(parts),
        # Files in it are named by the split too, so those of a joined split are others.
        folder=parts[0].folder,
    )


def fingerprint_of(texts: Sequence[str]) -> int:
    """A hash of a row's texts, as a number of eight bytes; see Split.fingerprints."""
    # Texts are joined by a character that no text has within it after it was split at white space.
    # Not NFKC, for which a superscript 2 is a 2. Also before, because casefold changes a few marks.
    composed = [unicodedata.normalize("NFC", text).casefold() for text in texts]
    folded = "\0".join([" ".join(text.split()) for text in composed])
    content = unicodedata.normalize("NFC", folded).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def key_of(texts: Sequence[str]) -> bytes:
    """sha256 of a row's texts; lengths are part of it, so ("ab", "c") is not ("a", "bc")."""
    encoded = [text.encode() for text in texts]
    return hashlib.sha256(b"".join([len(text).to_bytes(8, "big") + text for text in encoded])).digest()
