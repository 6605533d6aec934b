"""The distinct texts among some rows, found by their keys: equal texts are computed once and share their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.data.array_file import ArrayFile, shared_array
from distillchain_trainer.data.partitions import partitions
from distillchain_trainer.engine.encoding.encoded import ranges

Keys: TypeAlias = NDArray[np.uint8]
"""[rows, 32]: a sha256 for each row."""

COLUMNS: tuple[tuple[str, type[np.int64] | type[np.uint64]], ...] = (
    ("first_rows", np.int64), ("heads", np.uint64), ("tails", np.uint64),
)  # fmt: skip


@dataclass(frozen=True)
class DistinctTexts:
    """Numbers the distinct texts of some rows, and says where each has its outputs. 24 bytes per text, 8 per row,
    in files if there is a folder for them.

    Attributes:
        place: for each row the number of its text [rows].
        first_rows: for each text the first row that has it [texts].
        starts: where the items of each text start among the outputs, [texts + 1]; None: one output per text.
    """

    place: NDArray[np.int64]
    first_rows: NDArray[np.int64]
    starts: NDArray[np.int64] | None
    _heads: NDArray[np.uint64]
    _tails: NDArray[np.uint64]

    @classmethod
    def of(
        cls, keys: Keys, item_counts: NDArray[np.int32] | None = None, *, folder: Path | None = None
    ) -> DistinctTexts:
        """From the keys of the rows, and for a task with items how many each row has.

        Args:
            folder: for files of this process alone, which are mapped; None: in memory.
        """
        parts = _Parts(folder)
        place = np.empty(len(keys), dtype=np.int64)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "place.i64").unlink(missing_ok=True)
            place = shared_array(folder / "place.i64", np.int64, (len(keys),))
        for rows in partitions(lambda start, stop: _halves(keys[start:stop])[0], len(keys)):
            heads, tails = _halves(keys[rows])
            # Stable, so that the first of equal texts is the first row.
            order = np.lexsort((tails, heads))
            heads, tails, rows = heads[order], tails[order], rows[order]
            is_new = np.ones(len(order), dtype=bool)
            is_new[1:] = (heads[1:] != heads[:-1]) | (tails[1:] != tails[:-1])
            place[rows] = parts.count + np.cumsum(is_new) - 1
            parts.append(first_rows=rows[is_new], heads=heads[is_new], tails=tails[is_new])
        first_rows = parts.finish("first_rows")
        starts = (
            None if item_counts is None else np.concatenate([[0], np.cumsum(item_counts[first_rows], dtype=np.int64)])
        )
        return cls(place, first_rows, starts, parts.finish("heads"), parts.finish("tails"))

    def __len__(self) -> int:
        return len(self.first_rows)

    @property
    def output_count(self) -> int:
        """Outputs of all texts."""
        return len(self) if self.starts is None else int(self.starts[-1])

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """For each key the number of its text; -1 for a text that no row has."""
        heads, tails = _halves(keys)
        found = np.searchsorted(self._heads, heads)
        last = len(self) - 1
        while True:
            clamped = np.minimum(found, last)
            same_head = (found <= last) & (self._heads[clamped] == heads)
            other = same_head & (self._tails[clamped] != tails)
            if not other.any():
                return np.where(same_head, clamped, -1)
            found[other] += 1

    def sizes(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many outputs some texts have."""
        return (
            np.ones(len(texts), dtype=np.int64) if self.starts is None else self.starts[texts + 1] - self.starts[texts]
        )

    def outputs(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the outputs of some texts are among those of all texts."""
        return texts if self.starts is None else ranges(self.starts[texts], self.sizes(texts))


class _Parts:
    """Arrays that grow, in files or in memory. Each has eight bytes per element."""

    def __init__(self, folder: Path | None) -> None:
        self._files = (
            None if folder is None else {name: ArrayFile(folder / f"{name}.bin", kind) for name, kind in COLUMNS}
        )
        self._lists: dict[str, list[NDArray[Any]]] = {name: [np.zeros(0, dtype=kind)] for name, kind in COLUMNS}
        self.count = 0

    def append(self, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            if self._files is None:
                self._lists[name].append(array)
            else:
                self._files[name].append(array)
        self.count += len(arrays["heads"])

    def finish(self, name: str) -> NDArray[Any]:
        return np.concatenate(self._lists[name]) if self._files is None else self._files[name].finish()


def _halves(keys: Keys) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 16 bytes of each key as two numbers: two texts never share so much of a sha256."""
    numbers = np.ascontiguousarray(keys[:, :16]).view(np.uint64)
    return numbers[:, 0].copy(), numbers[:, 1].copy()
