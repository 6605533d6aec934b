"""Rows of csv (RFC 4180)."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator

from distillchain_trainer.data.columns import Header, count_of
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.text_files import TextFile, blank_line
from distillchain_trainer.errors import DataInvalid

MAX_CELL_CHARS = 1 << 27  # csv's own limit of 131,072 refuses long documents


def read_csv(file: TextFile, header: Header) -> Iterator[Row]:
    """The rows of a csv file; a row is named by its first line.

    Raises: DataInvalid naming file and line, during the iteration.
    """
    # A setting of the whole process; csv has no other.
    csv.field_size_limit(MAX_CELL_CHARS)
    # newline="" leaves line ends within cells to csv.
    # Closed here: a file whose reader ends with an error would stay open until the error is forgotten.
    with contextlib.closing(file.lines(newline="")) as lines:
        yield from _rows(lines, file, header)


def _rows(lines: Iterator[str], file: TextFile, header: Header) -> Iterator[Row]:
    # strict: csv would otherwise guess at broken quoting.
    reader = csv.reader(lines, strict=True)
    picked: list[int] = []
    names: list[str] = []
    blank = 0  # the first line of those without cells: allowed at the end only
    while True:
        # Before the row is read: it may span several lines, and its place is the first of them.
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataInvalid(
                f"{file.name}:{number}: {error}; put a cell with a quotation mark, comma or line break in quotation "
                'marks, and double the marks within it ("")'
            ) from error
        if cells is None:
            return
        if not cells:
            # csv gives a blank line as a row without cells.
            blank = blank or number
            continue
        if blank:
            raise blank_line(file.name, blank)
        if not names:
            names, picked = cells, header.pick(cells, mark=",")
            continue
        if len(cells) != len(names):
            more = "put a cell with a comma in quotation marks"
            fewer = "add the missing ones (an empty cell needs its comma too), and put a line break in quotation marks"
            raise DataInvalid(
                f"{file.name}:{number}: {count_of(cells, 'cell')}, the header has {len(names)}; "
                + (more if len(cells) > len(names) else fewer)
            )
        yield Row(number, tuple([cells[i] for i in picked]))
