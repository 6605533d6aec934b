"""Rows of one or two texts and what their label columns say. Knows no task type and no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distillchain_trainer.data.cells import EMPTY, fault_of_text, is_empty
from distillchain_trainer.data.split import Split
from distillchain_trainer.data.split_writer import SplitWriter
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.tasks.sources import FIELD, NO_LABELS

ReadCell = Callable[[object], Any]
"""The target that a cell stands for. Raises: ValueError with the reason."""


def read_rows(
    role: str, table: Table, source: str, *, text: Sequence[str], label: str, read: ReadCell, folder: Path
) -> Split:
    """The rows of one split, whose cells are in the order of the wanted columns: the texts, then the label.

    Args:
        source: what messages call the file or hub split.
        text: names of the text columns.
        label: name of the label column.
        folder: for the files of all splits; each gets a folder in it.
    Raises: DataInvalid naming file, line and column.
    """
    writer = SplitWriter(folder / f"{role}-rows", role, place_prefix=table.place_prefix)
    is_first = True
    for row in table.rows:
        texts = row.cells[:-1]
        for column, cell in zip(text, texts, strict=True):
            fault = fault_of_text(cell)
            if fault is not None:
                raise DataInvalid(f'{table.place(row)}, column "{column}": {fault}')
        try:
            target = read(row.cells[-1])
        except ValueError as error:
            # If the first row has a label, the others should have one too.
            more = NO_LABELS if role == "test" and is_first else ""
            raise DataInvalid(f'{table.place(row)}, column "{label}": {error}{more}') from error
        writer.add(texts, target, number=row.number)
        is_first = False
    split = writer.close()
    if not len(split):
        raise DataInvalid(f"{FIELD}.splits.{role}: {source} has no rows; expected at least one")
    return split


def refuse_empty(cell: object) -> None:
    """Raises: ValueError for a label cell without content."""
    if is_empty(cell):
        raise ValueError(EMPTY)
