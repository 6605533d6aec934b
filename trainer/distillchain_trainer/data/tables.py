"""Rows of csv, tsv, jsonl and parquet files, each with its place; what is ambiguous is refused.

Knows columns, not what they mean. Nothing is guessed: no quoting in tsv (as GLUE writes it), RFC 4180 in csv.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from distillchain_api.faults import nearest
from distillchain_trainer.data.content import HEAD_BYTES, check_compressed, check_content
from distillchain_trainer.errors import DataInvalid, first_line, reading
from distillchain_trainer.stage_warnings import StageWarnings

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_CELL_CHARS = 1 << 27  # csv's own limit of 131,072 refuses long documents
LONG_NAME_CHARS, LONG_NAME_WORDS = 40, 4  # a longer cell of the first line is rather a text than a column name
# A cell of the first line that is a number is rather a value than a column name.
DECIMAL = re.compile(r"\s*[-+]?\d+(\.\d*)?\s*")


class Row(NamedTuple):
    """The wanted cells of one row in the order of the wanted columns, and its line or row number."""

    number: int
    cells: tuple[Any, ...]


@dataclass(frozen=True)
class Table:
    """The rows of one file or hub split; they can be iterated once.

    Attributes:
        place_prefix: the place of a row is this followed by its number.
    """

    place_prefix: str
    rows: Iterator[Row]

    def place(self, row: Row) -> str:
        """Where a row is, such as a.tsv:12."""
        return f"{self.place_prefix}{row.number}"


def read_table(
    path: Path, columns: Sequence[str], *, name: str, warnings: StageWarnings, class_names: Sequence[str] = ()
) -> Table:
    """The rows of a file, read while they are iterated.

    Args:
        name: the file's name in messages; its ending decides the format.
        class_names: the first line of a file is probably not a header if it contains one of them.
    Raises: DataInvalid naming file, line and column, now or during the iteration.
    """
    plain = name.removesuffix(".gz")
    ending = next((ending for ending in FORMATS if plain.lower().endswith(ending)), None)
    # Parquet is compressed inside, and reading it needs random access, which a gzip stream does not allow.
    if ending is None or (ending == ".parquet" and plain != name):
        raise DataInvalid(f"{name}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet")
    file = _File(path, name, is_compressed=plain != name)
    head = file.read_head()
    # Before the columns are looked for: in a file of another kind, a missing column would be a misleading message.
    check_content(head, name, ending=ending, is_unpacked=file.is_compressed)
    if not head.strip():
        raise DataInvalid(f"{name}: the file is empty; expected rows with {_quoted(columns)}")
    if ending == ".parquet":
        return Table(f"{name}, row ", _read_parquet(path, columns, name))
    header = _Header(columns, name, class_names)
    if ending == ".csv":
        rows = _read_csv(file, header)
    elif ending == ".tsv":
        rows = _read_tsv(file, header, warnings)
    else:
        rows = _read_jsonl(file, columns)
    return Table(f"{name}:", rows)


@dataclass(frozen=True)
class _File:
    """A text file, perhaps compressed, which is read as a stream: it may be larger than memory."""

    path: Path
    name: str
    is_compressed: bool

    def read_head(self) -> bytes:
        """The first HEAD_BYTES, decompressed."""
        with reading(self.name, DataInvalid), self.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if not self.is_compressed:
            return head
        # Before it is opened as gzip, whose error would not say what the file is.
        check_compressed(head, self.name)
        with self._open() as unpacked:
            return unpacked.read(HEAD_BYTES)

    def lines(self, *, newline: str) -> Iterator[str]:
        """The lines with their line ends; `newline` as in io.TextIOWrapper."""
        # utf-8-sig: a byte order mark, as Excel writes it, would become part of the first column's name.
        with self._open() as file, io.TextIOWrapper(file, "utf-8-sig", newline=newline) as lines:
            number = 0
            try:
                for line in lines:
                    number += 1
                    # A NUL is valid UTF-8, but no text file has one.
                    if "\0" in line:
                        raise DataInvalid(
                            f"{self.name}:{number}: the line has a NUL character (byte 0x00), so the file is damaged "
                            "or not UTF-8; copy it again, or convert it to UTF-8"
                        )
                    yield line
            except UnicodeDecodeError as error:
                raise self._not_utf8() from error

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with reading(self.name, DataInvalid):
            try:
                with gzip.open(self.path) if self.is_compressed else self.path.open("rb") as file:
                    yield cast("BinaryIO", file)
            except EOFError as error:
                # gzip found no end marker.
                raise DataInvalid(f"{self.name}: the file is cut short; copy it again") from error
            except (gzip.BadGzipFile, zlib.error) as error:
                raise DataInvalid(f"{self.name}: the gzip file is damaged ({error}); copy it again") from error

    def _not_utf8(self) -> DataInvalid:
        """Names line and byte. The decoder knows neither: it reads blocks."""
        with self._open() as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    byte = line[error.start]
                    return DataInvalid(
                        f"{self.name}:{number}: byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8"
                    )
        return DataInvalid(f"{self.name}: the file is not UTF-8; convert it to UTF-8")


def _lines(file: _File) -> Iterator[tuple[int, str]]:
    """Lines without CR and LF, from 1; blank lines at the end are left out.

    Not splitlines(), which also breaks at U+2028, U+0085 and form feeds within texts.
    """
    blank = 0  # the last line, if it is blank: allowed at the end only
    for number, line in enumerate(file.lines(newline="\n"), start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        if not content:
            blank = blank or number
            continue
        if blank:
            raise _blank_line(file.name, blank)
        yield number, content


def _blank_line(name: str, number: int) -> DataInvalid:
    return DataInvalid(f"{name}:{number}: the line is blank, and rows follow; remove it")


def _read_tsv(file: _File, header: _Header, warnings: StageWarnings) -> Iterator[Row]:
    lines = _lines(file)
    _, first = next(lines)
    # With CR alone as line end, the whole file is one line.
    if "\r" in first:
        raise _cr_alone(file.name)
    names = first.split("\t")
    picked = header.pick(names, mark="\t")
    quotes = _Quotes(file.name)
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(names):
            raise DataInvalid(
                f"{file.name}:{number}: {_count(cells, 'cell')}, the header has {len(names)}; "
                "a tsv cell contains neither tab nor line break, and quotation marks mean nothing: correct the line"
            )
        wanted = tuple([cells[i] for i in picked])
        # A quick test first: most lines have no quotation mark.
        if '"' in line:
            quotes.look_at(wanted, number)
        quotes.rows += 1
        yield Row(number, wanted)
    quotes.warn(warnings)


class _Quotes:
    """Counts tsv cells that look quoted as in csv: their quotation marks become part of the text."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.rows = 0
        self._enclosed = 0  # rows with a cell in quotation marks
        self._escaped = 0  # rows with a cell such as "a ""good"" film", which only csv writers produce
        self._first = 0

    def look_at(self, cells: Sequence[str], number: int) -> None:
        """Looks at the wanted cells of a line that contains a quotation mark."""
        enclosed = [cell for cell in cells if len(cell) > 2 and cell[0] == cell[-1] == '"']
        self._enclosed += bool(enclosed)
        if any('""' in cell[1:-1] for cell in enclosed):
            self._escaped += 1
            self._first = self._first or number

    def warn(self, warnings: StageWarnings) -> None:
        """Warns of doubled marks within a cell, and of a file whose every row has a cell in quotation marks."""
        remedy = "their quotation marks are kept as part of the text; save the file as csv if they are not meant so"
        if self._escaped:
            warnings.add(
                f"{self._name}:{self._first}: {self._escaped} of {self.rows} rows have cells that are quoted as in "
                f"csv; {remedy}"
            )
        elif self._enclosed == self.rows > 1:
            # A single text in quotation marks is ordinary. If every row has one, a csv writer has probably added them.
            warnings.add(f"{self._name}: every row has a cell in quotation marks; {remedy}")


def _cr_alone(name: str) -> DataInvalid:
    return DataInvalid(
        f"{name}: its lines end in CR alone, as on old Macs; convert the line ends to LF, for example with "
        "`tr '\\r' '\\n'`"
    )


def _read_csv(file: _File, header: _Header) -> Iterator[Row]:
    # A setting of the whole process; csv has no other.
    csv.field_size_limit(MAX_CELL_CHARS)
    # newline="" leaves line ends within cells to csv. strict: csv would otherwise guess at broken quoting.
    reader = csv.reader(file.lines(newline=""), strict=True)
    picked: list[int] = []
    names: list[str] = []
    blank = 0  # line of the last row without cells: allowed at the end only
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
        if not names:
            names, picked = cells, header.pick(cells, mark=",")
            continue
        if blank:
            raise _blank_line(file.name, blank)
        if not cells:
            # csv gives a blank line as a row without cells.
            blank = number
            continue
        if len(cells) != len(names):
            raise DataInvalid(
                f"{file.name}:{number}: {_count(cells, 'cell')}, the header has {len(names)}; "
                "put a cell with a comma in quotation marks"
            )
        yield Row(number, tuple([cells[i] for i in picked]))


def _read_jsonl(file: _File, columns: Sequence[str]) -> Iterator[Row]:
    keys: list[str] = []
    picked: list[str] = []
    for number, line in _lines(file):
        try:
            # json keeps the last of several equal keys without a word.
            value = json.loads(line, object_pairs_hook=_unique_keys)
        except ValueError as error:
            # With CR alone as line end, the whole file is one line, which is not JSON.
            if "\r" in line:
                raise _cr_alone(file.name) from error
            raise DataInvalid(
                f"{file.name}:{number}: not a JSON object ({error}); write one object per line"
            ) from error
        if not isinstance(value, dict):
            raise DataInvalid(
                f"{file.name}:{number}: got {line.strip()[:40]}, expected a JSON object; write one object per line"
            )
        # Most rows have the same keys in the same order, so columns are rarely looked up again.
        if list(value) != keys:
            keys = list(value)
            picked = [keys[i] for i in pick_columns(keys, columns, f"{file.name}:{number}")]
        yield Row(number, tuple([value[key] for key in picked]))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [key for key, _ in pairs]
        repeated = next(key for key in names if names.count(key) > 1)
        raise ValueError(f'the key "{repeated}" occurs twice')
    return value


def _read_parquet(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            wanted = [names[i] for i in pick_columns(names, columns, name)]
            number = 0
            # In batches, as the file may be larger than memory.
            for batch in file.iter_batches(columns=wanted):
                for cells in zip(*(batch.column(column).to_pylist() for column in wanted), strict=True):
                    number += 1
                    yield Row(number, cells)
    except (pyarrow.ArrowException, OSError) as error:  # OSError without a number: damaged pages
        raise DataInvalid(f"{name}: the Parquet file is damaged ({first_line(error)}); copy it again") from error


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
        if count == 0:
            raise DataInvalid(f'{place}: no column "{column}"; {nearest(column, list(header))}')
    return [names.index(name) for name in wanted]


@dataclass(frozen=True)
class _Header:
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
            raise DataInvalid(f'{place}: no column "{self.columns[0]}"; {hint}')
        return pick_columns(cells, self.columns, place)

    def _hint(self, cells: Sequence[str], mark: str) -> str | None:
        """What is wrong, if no wanted column is in the first line and the reason can be recognised."""
        names = {unicodedata.normalize("NFC", cell) for cell in cells}
        # It is a header, in which some names may be missing: pick_columns says which.
        if any(unicodedata.normalize("NFC", column) in names for column in self.columns):
            return None
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
                f"the {_count(cells, 'column')}, such as {example}"
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


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _count(cells: Sequence[str], noun: str) -> str:
    return f"{len(cells)} {noun}" + ("" if len(cells) == 1 else "s")
