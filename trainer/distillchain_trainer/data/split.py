"""The rows of one split in memory: texts, targets, a key for each row's texts, and the row's place in its file."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.manifest import SplitFacts


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        name: train, validation or test.
        texts: one or more texts for each row.
        targets: what the label column says for each row, as the task type reads it; JSON values.
        keys: sha256 of the texts of each row; teacher outputs are stored under it.
        place_prefix: begins the place of each row, such as "file:///data/train.tsv:".
        numbers: ends the place of each row: its line or row number. Four bytes per row; a string would be a hundred.
        folder: for files that belong to these rows alone, shared by the processes of a node; None: rows are in memory.
    """

    name: str
    texts: list[tuple[str, ...]]
    targets: list[Any]
    keys: list[bytes] = field(default_factory=list)
    place_prefix: str = ""
    numbers: array[int] = field(default_factory=lambda: array("I"))
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, row: int) -> str:
        """Where a row is, for messages: file and line, or split and row."""
        return f"{self.place_prefix}{self.numbers[row]}" if self.numbers else f"{self.name}, row {row + 1}"

    @cached_property
    def facts(self) -> SplitFacts:
        """For the manifest."""
        # In the order of the rows, because the training depends on it.
        digest = hashlib.sha256(b"".join(self.keys))
        digest.update(json.dumps(self.targets).encode())
        return SplitFacts(rows=len(self), sha256=digest.hexdigest())

    @cached_property
    def texts_sha256(self) -> str:
        """Over the texts alone, in any order and without repetitions."""
        # Sorted, because a shuffled copy of a file is not held out either.
        return hashlib.sha256(b"".join(sorted(set(self.keys)))).hexdigest()

    @cached_property
    def fingerprints(self) -> NDArray[np.int64]:
        """A hash of each row's texts that ignores case and white space, [rows]; valid within this process."""
        # Python's own hash: eight bytes per row, and fast. It differs between processes and is never stored.
        hashes = (hash("\0".join([" ".join(text.casefold().split()) for text in texts])) for texts in self.texts)
        return np.fromiter(hashes, dtype=np.int64, count=len(self))


@dataclass(frozen=True)
class TaskData:
    """All splits of a task."""

    train: Split
    validation: Split
    test: Split | None
    revision: str

    @property
    def splits(self) -> dict[str, Split]:
        """By name."""
        found = {"train": self.train, "validation": self.validation}
        return found | ({"test": self.test} if self.test else {})


def key_of(texts: Sequence[str]) -> bytes:
    """sha256 of a row's texts; lengths are part of it, so ("ab", "c") is not ("a", "bc")."""
    encoded = [text.encode() for text in texts]
    return hashlib.sha256(b"".join([len(text).to_bytes(8, "big") + text for text in encoded])).digest()
