"""Finds the wanted columns in the header of a file, and explains why a first line is not a header."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from distillchain_api.faults import nearest
from distillchain_trainer.errors import DataInvalid

LONG_NAME_CHARS, LONG_NAME_WORDS = 40, 4  # a longer cell of the first line is rather a text than a column name
# A cell of the first line that is a number is rather a value than a column name.
DECIMAL = re.compile(r"\s*[-+]?\d+(\.\d*)?\s*")


class NoColumn(DataInvalid):
    """A file lacks a wanted column. `hint` says what it has instead, or what to do."""

    def __init__(self, place: str, column: str, hint: str, *, field: str = "") -> None:
        self.place, self.column, self.hint = place, column, hint
        super().__init__(f'{place}: no column "{column}"{field and f" ({field})"}{hint}')

    def named_by(self, field: str, *, more: str = "") -> NoColumn:
        """The same error with the field of the chain that names the column, and more at its end."""
        return NoColumn(self.place, self.column, self.hint + more, field=field)


def pick_columns(header: Sequence[str], columns: Sequence[str], place: str) -> list[int]:
    """The index of each wanted column in the header. Names may differ in their Unicode form.

    Raises: DataInvalid for a missing column, and for a wanted name that several columns have.
    """
    names = [unicodedata.normalize("NFC", name) for name in header]
    # A name that is typed and one from a file may differ in their bytes: "é" is one character or two.
    wanted = [unicodedata.normalize("NFC", column) for column in columns]
    for column, name in zip(columns, wanted, strict=True):
        count = names.count(name)
        if count > 1:
            raise DataInvalid(f'{place}: {count} columns are named "{column}"; rename all but one')
        spaced = next((cell for cell in header if cell.strip() == column), None)
        if count == 0 and spaced is not None:
            raise NoColumn(place, column, f', but "{spaced}"; remove the spaces')
        if count == 0:
            raise NoColumn(place, column, f"; {nearest(column, list(header))}")
    return [names.index(name) for name in wanted]


@dataclass(frozen=True)
class Header:
    """What is known of the first line of a csv or tsv file before it is read."""

    columns: Sequence[str]
    name: str
    class_names: Sequence[str]

    def pick(self, cells: Sequence[str], *, mark: str) -> list[int]:
        """The index of each wanted column. Raises: DataInvalid, with a hint at what is wrong with the first line."""
        place = f"{self.name}:1"
        # Before pick_columns, whose message suggests the nearest column. That is no help if the line is not a header.
        hint = self._hint(cells, mark)
        if hint is not None:
            raise NoColumn(place, self.columns[0], f"; {hint}")
        return pick_columns(cells, self.columns, place)

    def _hint(self, cells: Sequence[str], mark: str) -> str | None:
        """What is wrong, if no wanted column is in the first line and the reason can be recognised."""
        names = {unicodedata.normalize("NFC", cell) for cell in cells}
        # It is a header, in which some names may be missing: pick_columns says which.
        if any(unicodedata.normalize("NFC", column) in names for column in self.columns):
            return None
        if cells[0].lower().startswith("sep="):
            return "the first line is the separator that Excel writes; remove it"
        # A single column suggests that the cells are separated by another character.
        other = next((other for other in "\t,;|" if other in cells[0]), None) if len(cells) == 1 else None
        if other is not None:
            ending = {"\t": "let the file's name end in .tsv", ",": "let the file's name end in .csv"}.get(other)
            return (
                f"the only column is {_short(cells[0])!r}; "
                f"{ending or f'separate the cells with commas (csv) or tabs (tsv), not with {other!r}'}"
            )
        if any(cell.strip(" \"'") in self.columns for cell in cells):
            return "the names of the columns are in quotation marks or spaces; remove them, or save the file as csv"
        if any(self._looks_like_data(cell) for cell in cells):
            first = ", ".join(_short(cell) for cell in cells[:3]) + (", ..." if len(cells) > 3 else "")
            example = ("<TAB>" if mark == "\t" else mark).join(self.columns)
            return (
                f"the first line looks like a row, not like a header ({first}): add a first line with the names of "
                f"the {count_of(cells, 'column')}, such as {example}"
            )
        return None

    def _looks_like_data(self, cell: str) -> bool:
        known = {unicodedata.normalize("NFC", name).casefold() for name in self.class_names}
        return (
            unicodedata.normalize("NFC", cell.strip()).casefold() in known
            or DECIMAL.fullmatch(cell) is not None
            or len(cell) > LONG_NAME_CHARS
            or len(cell.split()) > LONG_NAME_WORDS
        )


def _short(cell: str) -> str:
    return cell if len(cell) <= LONG_NAME_CHARS else f"{cell[:LONG_NAME_CHARS]}..."


def quoted(columns: Sequence[str]) -> str:
    """Names of columns for a message."""
    return ", ".join(f'"{column}"' for column in columns)


def count_of(cells: Sequence[str], noun: str) -> str:
    """ "1 cell" or "3 cells"."""
    return f"{len(cells)} {noun}" + ("" if len(cells) == 1 else "s")
