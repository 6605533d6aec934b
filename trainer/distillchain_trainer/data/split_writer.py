"""Writes the rows of a split to files while they are read, so that no more than a block of them is in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.data.array_file import ArrayFile, map_array
from distillchain_trainer.data.mapped_columns import KEY_BYTES, KeyColumn, ListColumn, NumberColumn, TextColumn
from distillchain_trainer.data.split import Split, fingerprint_of, key_of

BLOCK_ROWS = 4_096  # in memory before they are written
FACTS = "split.json"


class SplitWriter:
    """Takes rows one by one. Nothing of it is left in memory once it is closed.

    Args:
        folder: for the files of this split alone; files of an earlier split in it are replaced.
        name, place_prefix: as in Split.
    """

    def __init__(self, folder: Path, name: str, *, place_prefix: str = "") -> None:
        self._folder, self._name, self._place_prefix = folder, name, place_prefix
        # With the token ids of the earlier rows, which lie in it too.
        shutil.rmtree(folder, ignore_errors=True)
        self._text = ArrayFile(folder / "text.u8", np.uint8)
        self._text_starts = ArrayFile(folder / "text_starts.i64", np.int64)
        self._row_starts = ArrayFile(folder / "row_starts.i64", np.int64)
        self._keys = ArrayFile(folder / "keys.u8", np.uint8, (KEY_BYTES,))
        self._numbers = ArrayFile(folder / "numbers.u32", np.uint32)
        self._fingerprints = ArrayFile(folder / "fingerprints.i64", np.int64)
        self._targets = _Targets(folder)
        for starts in (self._text_starts, self._row_starts):
            starts.append([0])
        self._rows: list[Sequence[str]] = []
        self._row_keys: list[bytes] = []
        self._row_fingerprints: list[int] = []
        self._row_targets: list[Any] = []
        self._row_numbers: list[int] = []

    def add(
        self,
        texts: Sequence[str],
        target: Any = None,
        *,
        number: int,
        key: bytes | None = None,
        fingerprint: int | None = None,
    ) -> None:
        """Adds a row.

        Args:
            target: an int, a float, or a list of ints or of floats, of the same kind in all rows; None: no row has one.
            number: the line or row number in its file.
            key, fingerprint: by default those of the texts.
        """
        self._rows.append(texts)
        self._row_keys.append(key or key_of(texts))
        self._row_fingerprints.append(fingerprint_of(texts) if fingerprint is None else fingerprint)
        self._row_numbers.append(number)
        if target is not None:
            self._row_targets.append(target)
        if len(self._rows) >= BLOCK_ROWS:
            self._flush()

    def close(self) -> Split:
        """The split, mapped."""
        self._flush()
        files = (self._text, self._text_starts, self._row_starts, self._keys, self._numbers, self._fingerprints)
        for file in files:
            file.finish()
        facts = {"name": self._name, "place_prefix": self._place_prefix, "targets": self._targets.finish()}
        (self._folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return open_split(self._folder)

    def _flush(self) -> None:
        texts = [text.encode() for text in chain.from_iterable(self._rows)]
        first_text = len(self._text_starts) - 1
        self._text_starts.append(_ends(texts, first=len(self._text)))
        self._row_starts.append(_ends(self._rows, first=first_text))
        self._text.append(np.frombuffer(b"".join(texts), dtype=np.uint8))
        self._keys.append(np.frombuffer(b"".join(self._row_keys), dtype=np.uint8))
        self._numbers.append(self._row_numbers)
        self._fingerprints.append(self._row_fingerprints)
        self._targets.append(self._row_targets)
        self._rows, self._row_keys, self._row_fingerprints = [], [], []
        self._row_targets, self._row_numbers = [], []


def _ends(parts: Sequence[Sequence[Any]], *, first: int) -> NDArray[np.int64]:
    """Where each part ends, if the first one starts at `first`."""
    ends: NDArray[np.int64] = first + np.cumsum([len(part) for part in parts], dtype=np.int64)
    return ends


class _Targets:
    """The targets of a split: their kind is that of the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dtype: type[np.int64] | type[np.float64] | None = None
        self._values: ArrayFile[Any] | None = None
        self._starts: ArrayFile[np.int64] | None = None

    def append(self, targets: list[Any]) -> None:
        if not targets:
            return
        if isinstance(targets[0], list) and self._starts is None:
            self._starts = ArrayFile(self._folder / "target_starts.i64", np.int64)
            self._starts.append([0])
        if self._starts is None:
            self._write(targets)
            return
        self._starts.append(_ends(targets, first=len(self._values) if self._values is not None else 0))
        self._write(list(chain.from_iterable(targets)))

    def _write(self, values: list[Any]) -> None:
        if not values:
            return
        array = np.asarray(values)
        if self._values is None:
            self._dtype = np.int64 if array.dtype.kind in "iub" else np.float64
            self._values = ArrayFile(self._folder / "targets.bin", self._dtype)
        if array.dtype.kind not in ("iub" if self._dtype is np.int64 else "iubf"):
            raise TypeError(f"targets of type {array.dtype} in a split whose first targets are {self._dtype}")
        self._values.append(array)

    def finish(self) -> str:
        """Returns: the kind of the targets, for open_split."""
        for file in (self._values, self._starts):
            if file is not None:
                file.finish()
        kind = "" if self._dtype is None else np.dtype(self._dtype).name
        return f"lists {kind}" if self._starts is not None else kind


def open_split(folder: Path) -> Split:
    """A split that SplitWriter has written."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return Split(
        facts["name"],
        TextColumn(
            map_array(folder / "text.u8", np.uint8),
            map_array(folder / "text_starts.i64", np.int64),
            map_array(folder / "row_starts.i64", np.int64),
        ),
        _open_targets(folder, facts["targets"]),
        KeyColumn(map_array(folder / "keys.u8", np.uint8, (KEY_BYTES,))),
        place_prefix=facts["place_prefix"],
        numbers=NumberColumn(map_array(folder / "numbers.u32", np.uint32)),
        folder=folder,
        stored_fingerprints=map_array(folder / "fingerprints.i64", np.int64),
    )


def _open_targets(folder: Path, kind: str) -> Sequence[Any]:
    dtype: type[np.int64] | type[np.float64] = np.float64 if kind.endswith("float64") else np.int64
    if not kind:
        return []
    values = map_array(folder / "targets.bin", dtype) if kind != "lists " else np.zeros(0, dtype=dtype)
    if kind.startswith("lists"):
        return ListColumn(values, map_array(folder / "target_starts.i64", np.int64))
    return NumberColumn(values)


def write_split(folder: Path, split: Split) -> Split:
    """The same rows in files."""
    if split.folder is not None:
        return split
    writer = SplitWriter(folder, split.name, place_prefix=split.place_prefix)
    for row, (texts, key) in enumerate(zip(split.texts, split.keys, strict=True)):
        target = split.targets[row] if row < len(split.targets) else None
        writer.add(texts, target, number=split.numbers[row] if split.numbers else row + 1, key=key)
    return writer.close()
