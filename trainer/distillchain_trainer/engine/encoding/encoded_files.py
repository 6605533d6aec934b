"""Token ids in files that are mapped into memory; the processes of a node encode a split once and share them."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distillchain_trainer.data.array_file import ArrayFile, map_array
from distillchain_trainer.engine.encoding.encoded import CUT_OFF, Encoded
from distillchain_trainer.engine.encoding.tokenizing import Tokens

DONE = "done.json"
POLL_S = 0.1  # between looks whether another process has finished encoding


@dataclass
class Lengths:
    """What truncation did to some rows: how many were truncated, and the tokens of the longest before that."""

    max_length: int
    truncated: int = 0
    longest: int = 0

    def count(self, full_lengths: list[int]) -> None:
        """Adds rows, given their tokens before truncation."""
        self.truncated += sum(length > self.max_length for length in full_lengths)
        self.longest = max(self.longest, *full_lengths)


def encode_in_memory(blocks: Iterable[Tokens], lengths: Lengths, *, pad_id: int, pad_left: bool) -> Encoded:
    """Token ids without files."""
    whole = Tokens([], [], [], [], [])
    for block in blocks:
        lengths.count(block.full_lengths)
        whole.append(block)
    return Encoded.of(
        whole.ids,
        whole.kinds or None,
        pad_id=pad_id,
        pad_left=pad_left,
        positions=whole.positions or None,
        item_ids=whole.item_ids or None,
    )


def encode_in_files(
    folder: Path,
    blocks: Iterable[Tokens],
    lengths: Lengths,
    *,
    pad_id: int,
    pad_left: bool,
    check: Callable[[], None],
) -> Encoded:
    """Token ids in the files of `folder`, which must be for these rows and this tokenizer alone.

    Args:
        check: is called while another process encodes the same rows, and may raise.
    """
    with _locked(folder, check):
        done = folder / DONE
        if not done.exists():
            _write(folder, blocks, lengths)
            part = done.with_suffix(".part")
            part.write_text(json.dumps({"truncated": lengths.truncated, "longest": lengths.longest}), encoding="ascii")
            part.replace(done)
    found = json.loads(done.read_text(encoding="ascii"))
    lengths.truncated, lengths.longest = found["truncated"], found["longest"]
    arrays = {path.stem: _map(path) for path in folder.glob("*.i*")}
    return Encoded(
        arrays["ids"],
        arrays["starts"],
        arrays.get("kinds"),
        pad_id,
        pad_left,
        positions=arrays.get("positions"),
        item_starts=arrays.get("item_starts"),
        item_ids=arrays.get("item_ids"),
        kept=arrays.get("kept"),
        kept_starts=arrays.get("kept_starts"),
    )


@contextmanager
def _locked(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Held by one process at a time, also if another one is killed within."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                time.sleep(POLL_S)
        yield


def _map(path: Path) -> torch.Tensor:
    dtype: type[np.int32] | type[np.int64] = np.int64 if path.suffix == ".i64" else np.int32
    return torch.from_numpy(map_array(path, dtype))


@dataclass
class _Column:
    """One array per row, one row after the other, and where each row starts."""

    values: ArrayFile[np.int32]
    starts: ArrayFile[np.int64]

    @classmethod
    def in_folder(cls, folder: Path, values: str, starts: str) -> _Column:
        column = cls(
            ArrayFile(folder / f"{values}.i32", np.int32),
            ArrayFile(folder / f"{starts}.i64", np.int64),
        )
        column.starts.append([0])
        return column

    def append(self, rows: list[NDArray[np.int32]]) -> NDArray[np.int64]:
        """Returns: where each row ends."""
        sizes = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        ends = len(self.values) + np.cumsum(sizes)
        self.values.append(np.concatenate(rows))
        self.starts.append(ends)
        return ends

    def finish(self) -> None:
        self.values.finish()
        self.starts.finish()


@dataclass
class _Items:
    """The items of all rows, and which of them were not cut off."""

    folder: Path
    column: _Column
    ids: ArrayFile[np.int32] | None
    kept: ArrayFile[np.int64]
    kept_starts: ArrayFile[np.int64]
    cut_off: int = 0

    @classmethod
    def in_folder(cls, folder: Path, *, with_ids: bool) -> _Items:
        items = cls(
            folder,
            _Column.in_folder(folder, "positions", "item_starts"),
            ArrayFile(folder / "item_ids.i32", np.int32) if with_ids else None,
            ArrayFile(folder / "kept.i64", np.int64),
            ArrayFile(folder / "kept_starts.i64", np.int64),
        )
        items.kept_starts.append([0])
        return items

    def append(self, positions: list[NDArray[np.int32]], ids: list[NDArray[np.int32]] | None) -> None:
        before, kept_before = len(self.column.values), len(self.kept)
        ends = self.column.append(positions)
        kept = before + np.flatnonzero(np.concatenate(positions) != CUT_OFF)
        self.kept.append(kept)
        self.kept_starts.append(kept_before + np.searchsorted(kept, ends))
        self.cut_off += int(ends[-1]) - before - len(kept)
        if self.ids is not None:
            assert ids is not None
            self.ids.append(np.concatenate(ids))

    def finish(self) -> None:
        self.column.finish()
        for file in (self.ids, self.kept, self.kept_starts):
            if file is not None:
                file.finish()
        if not self.cut_off:  # then the index is that of all items
            (self.folder / "kept.i64").unlink()


@dataclass
class _Files:
    """The files of one split while they are written."""

    folder: Path
    tokens: _Column
    kinds: ArrayFile[np.int32] | None = None
    items: _Items | None = None
    is_started: bool = False

    def append(self, block: Tokens) -> None:
        if not self.is_started:
            self.kinds = ArrayFile(self.folder / "kinds.i32", np.int32) if block.kinds else None
            if block.positions is not None:
                self.items = _Items.in_folder(self.folder, with_ids=block.item_ids is not None)
            self.is_started = True
        self.tokens.append(block.ids)
        if self.kinds is not None:
            self.kinds.append(np.concatenate(block.kinds))
        if self.items is not None:
            assert block.positions is not None
            self.items.append(block.positions, block.item_ids)

    def finish(self) -> None:
        self.tokens.finish()
        if self.kinds is not None:
            self.kinds.finish()
        if self.items is not None:
            self.items.finish()


def _write(folder: Path, blocks: Iterable[Tokens], lengths: Lengths) -> None:
    for path in folder.glob("*.i*"):  # of an attempt that was interrupted
        path.unlink()
    files = _Files(folder, _Column.in_folder(folder, "ids", "starts"))
    for block in blocks:
        lengths.count(block.full_lengths)
        files.append(block)
    files.finish()
