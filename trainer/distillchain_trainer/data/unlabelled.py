"""Which unlabelled texts are used: not the empty, the repeated, and those that are in a split of the data set.

Compares texts alone. Knows no file and no task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distillchain_trainer.data.cells import EMPTY as EMPTY_CELL
from distillchain_trainer.data.cells import fault_of_text
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.split import fingerprint_of
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid

BLOCK_ROWS = 65_536  # looked up at a time: enough that a lookup costs little per row, and few texts in memory
EMPTY, REPEATED = "empty", "repeated"


class Usable(NamedTuple):
    """A text that is used.

    Attributes:
        number: its line or row number in its file.
        fingerprint: see Split.fingerprints.
    """

    number: int
    texts: tuple[str, ...]
    fingerprint: int


class Sieve:
    """Lets each text through once, over all files.

    Args:
        held: fingerprints of the splits of the data set, whose texts are left out. A text that is in several counts for
            the first.
        limit: texts that are let through; None: all.
    """

    def __init__(self, held: Mapping[str, NDArray[np.int64]], *, limit: int | None) -> None:
        self._held = {name: np.unique(fingerprints) for name, fingerprints in held.items()}
        self._own = np.zeros(0, dtype=np.int64)  # sorted, of the texts that were let through
        self._left = limit
        self.left_out: dict[str, int] = dict.fromkeys((EMPTY, *held, REPEATED), 0)

    @property
    def is_full(self) -> bool:
        """Whether as many texts were let through as are wanted."""
        return self._left == 0

    def usable(self, table: Table, columns: Sequence[str]) -> Iterator[Usable]:
        """The texts of a file that are used, until there are enough.

        Raises: DataInvalid for a row that is no text, unless there are enough texts before it.
        """
        while not self.is_full:
            block = _Block.read(table, columns)
            texts = (("",) if no_text else row.cells for row, no_text in zip(block.rows, block.empty, strict=True))
            fingerprints = np.fromiter((fingerprint_of(cells) for cells in texts), dtype=np.int64)
            used = self._judge(fingerprints, np.array(block.empty, dtype=np.bool_))
            # Shorter than the block where the last wanted text is within it.
            for row, fingerprint, is_used in zip(block.rows, fingerprints.tolist(), used.tolist(), strict=False):
                if is_used:
                    yield Usable(row.number, row.cells, fingerprint)
            if block.fault is not None and not self.is_full:
                raise block.fault
            if len(block.rows) < BLOCK_ROWS:
                return

    def _judge(self, fingerprints: NDArray[np.int64], empty: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which texts are used, up to the last one that is wanted. Counts why the others are not."""
        _, first = np.unique(fingerprints, return_index=True)
        repeated = _is_in(self._own, fingerprints)
        repeated[np.setdiff1d(np.arange(len(fingerprints)), first)] = True
        hits = {EMPTY: empty, **{name: _is_in(held, fingerprints) for name, held in self._held.items()}}
        hits[REPEATED] = repeated
        used: NDArray[np.bool_] = ~np.logical_or.reduce(list(hits.values()))
        if self._left is not None:
            # What comes after the last wanted text counts as not read.
            used = used[: int(np.searchsorted(np.cumsum(used), self._left)) + 1]
            self._left -= int(used.sum())
        counted = np.zeros(len(used), dtype=bool)
        for reason, found in hits.items():
            self.left_out[reason] += int((found[: len(used)] & ~counted).sum())
            counted |= found[: len(used)]
        # A stable sort merges two sorted runs in linear time.
        own = np.concatenate([self._own, np.sort(fingerprints[: len(used)][used])])
        self._own = np.sort(own, kind="stable")
        return used


@dataclass
class _Block:
    """Some rows of a file, up to a faulty one.

    Attributes:
        empty: for each row whether it has no text.
        fault: why the next row cannot be used. Kept, because it does not matter if no more rows are wanted.
    """

    rows: list[Row] = field(default_factory=list)
    empty: list[bool] = field(default_factory=list)
    fault: DataInvalid | None = None

    @classmethod
    def read(cls, table: Table, columns: Sequence[str]) -> _Block:
        """The next BLOCK_ROWS rows, or fewer."""
        block = cls()
        try:
            for row in islice(table.rows, BLOCK_ROWS):
                block.empty.append(_is_empty(table, columns, row))
                block.rows.append(row)
        except DataInvalid as fault:
            block.fault = fault
        return block


def _is_empty(table: Table, columns: Sequence[str], row: Row) -> bool:
    """Whether a row has no text; a pair with one empty text is no pair. Raises: DataInvalid for a cell that is none."""
    faults = [fault_of_text(cell) for cell in row.cells]
    if EMPTY_CELL in faults:
        return True
    for column, fault in zip(columns, faults, strict=True):
        if fault is not None:
            raise DataInvalid(f'{table.place(row)}, column "{column}": {fault}')
    return False


def _is_in(known: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    found: NDArray[np.bool_] = known[places] == values
    return found


def counts_sentence(left_out: Mapping[str, int]) -> str:
    """`3 empty, 12 repeated, 5 in train`; empty if no text was left out."""
    named = ((name if name in (EMPTY, REPEATED) else f"in {name}", count) for name, count in left_out.items())
    return ", ".join(f"{count} {name}" for name, count in named if count)
