"""Columns of a split whose values lie in mapped files; they read like lists and take no memory to speak of.

Iterate them, or take slices: a single row costs about as much as a slice of twenty.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.data.array_file import ArrayFile

Value = TypeVar("Value", covariant=True)

BLOCK_ROWS = 4_096  # that are turned into Python objects at a time
KEY_BYTES = 32  # of a sha256


class Column(Sequence[Value]):
    """A column that is read in blocks."""

    @abstractmethod
    def block(self, start: int, stop: int) -> list[Value]:
        """The values of some rows that exist."""

    @overload
    def __getitem__(self, index: int) -> Value: ...

    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...

    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.block(start, max(start, stop)) if step == 1 else [self[row] for row in range(start, stop, step)]
        row = range(len(self))[index]  # also of a negative index; raises IndexError beyond the end
        return self.block(row, row + 1)[0]

    def __iter__(self) -> Iterator[Value]:
        for start in range(0, len(self), BLOCK_ROWS):
            yield from self.block(start, min(start + BLOCK_ROWS, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as of a list, which it stands for


@dataclass(frozen=True, eq=False)
class TextColumn(Column[tuple[str, ...]]):
    """One or more texts for each row.

    Attributes:
        text: all texts in UTF-8, one after the other.
        text_starts: where each text starts [texts + 1].
        row_starts: the first text of each row [rows + 1].
    """

    text: NDArray[np.uint8]
    text_starts: NDArray[np.int64]
    row_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def block(self, start: int, stop: int) -> list[tuple[str, ...]]:
        """See Column."""
        rows = self.row_starts[start : stop + 1]
        starts = self.text_starts[rows[0] : rows[-1] + 1]
        # One copy for the block: a slice of it costs less than one of the mapped array.
        content, places = self.text[starts[0] : starts[-1]].tobytes(), (starts - starts[0]).tolist()
        texts = [content[first:last].decode() for first, last in pairwise(places)]
        firsts = (rows - rows[0]).tolist()
        return [tuple(texts[first:last]) for first, last in pairwise(firsts)]


@dataclass(frozen=True, eq=False)
class NumberColumn(Column[Any]):
    """A number for each row."""

    array: NDArray[Any]

    def __len__(self) -> int:
        return len(self.array)

    def block(self, start: int, stop: int) -> list[Any]:
        """See Column."""
        values: list[Any] = self.array[start:stop].tolist()
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)


@dataclass(frozen=True, eq=False)
class ListColumn(Column[list[Any]]):
    """A list of numbers for each row.

    Attributes:
        values: those of all rows, one after the other.
        starts: where the list of each row starts [rows + 1].
    """

    values: NDArray[Any]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def block(self, start: int, stop: int) -> list[list[Any]]:
        """See Column."""
        starts = self.starts[start : stop + 1]
        values, places = self.values[starts[0] : starts[-1]].tolist(), (starts - starts[0]).tolist()
        return [values[first:last] for first, last in pairwise(places)]


@dataclass(frozen=True, eq=False)
class KeyColumn(Column[bytes]):
    """A sha256 for each row, uint8 [rows, 32]."""

    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def block(self, start: int, stop: int) -> list[bytes]:
        """See Column."""
        content = self.array[start:stop].tobytes()
        return [content[place : place + KEY_BYTES] for place in range(0, len(content), KEY_BYTES)]


@dataclass(frozen=True, eq=False)
class Chained(Column[Value]):
    """Several columns one after the other."""

    parts: tuple[Sequence[Value], ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def block(self, start: int, stop: int) -> list[Value]:
        """See Column."""
        found: list[Value] = []
        for part in self.parts:
            found += part[max(start, 0) : max(stop, 0)]
            start, stop = start - len(part), stop - len(part)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(
            [np.asarray(part, dtype=dtype) for part in self.parts if len(part)] or [np.zeros(0, dtype)]
        )


def flat_numbers(column: Sequence[Sequence[Any]], dtype: Any) -> NDArray[Any]:
    """The numbers of all rows of a column of lists, one after the other."""
    if isinstance(column, ListColumn):
        return np.asarray(column.values, dtype=dtype)
    if isinstance(column, Chained):
        return np.concatenate([flat_numbers(part, dtype) for part in column.parts])
    return np.array([value for row in column for value in row], dtype=dtype)


def key_array(keys: Sequence[bytes], path: Path) -> NDArray[np.uint8]:
    """The keys [rows, 32]; those that are not in one file already are written to `path`."""
    if isinstance(keys, KeyColumn):
        return keys.array
    file = ArrayFile(path, np.uint8, (KEY_BYTES,))
    for start in range(0, len(keys), BLOCK_ROWS):
        file.append(np.frombuffer(b"".join(keys[start : start + BLOCK_ROWS]), dtype=np.uint8))
    return file.finish()
