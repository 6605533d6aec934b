"""Rows of csv, tsv, jsonl and parquet files, each with its place; what cannot be read surely is refused.

Knows columns, not what they mean. Nothing is guessed: no quoting in tsv (as GLUE writes it), RFC 4180 in csv.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillchain_api.faults import nearest
from distillchain_trainer.errors import DataInvalid, first_line, reading

log = logging.getLogger(__name__)

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_CELL_CHARS = 1 << 27  # csv's own limit of 131,072 refuses long documents
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """The wanted cells of one row, in the order they were asked for, and where it stands."""

    cells: tuple[Any, ...]
    place: str


def read_rows(path: Path, columns: Sequence[str], *, name: str) -> Iterator[Row]:
    """The rows of a file whose messages call it `name`.

    Raises: DataInvalid naming file, line and column.
    """
    plain = name.removesuffix(".gz")
    kind = next((ending for ending in FORMATS if plain.lower().endswith(ending)), None)
    if kind is None or (kind == ".parquet" and plain != name):
        raise DataInvalid(f"{name}: unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet")
    if kind == ".parquet":
        return _read_parquet(path, columns, name)
    with reading(name, DataInvalid):
        content = path.read_bytes()
    text = _decode(_unzip(content, name) if plain != name else content, name)
    if not text.strip():
        raise DataInvalid(f"{name}: the file is empty; expected rows with {_quoted(columns)}")
    reader = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl}[kind]
    return reader(text, columns, name)


def _unzip(content: bytes, name: str) -> bytes:
    try:
        return gzip.decompress(content)
    except EOFError as error:
        raise DataInvalid(f"{name}: the file is cut short; copy it again") from error
    except (OSError, zlib.error) as error:
        raise DataInvalid(f"{name}: not a whole gzip file ({error}); copy it again, or drop .gz") from error


def _decode(content: bytes, name: str) -> str:
    content = content.removeprefix(BOM)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataInvalid(
            f"{name}:{line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        ) from error


def _lines(text: str) -> list[str]:
    """Lines without CR and LF. Not splitlines(), which also breaks at U+2028, U+0085 and form feeds within texts."""
    lines = text.split("\n")
    if not lines[-1].strip("\r"):
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _read_tsv(text: str, columns: Sequence[str], name: str) -> Iterator[Row]:
    lines = _lines(text)
    header = lines[0].split("\t")
    picked = _pick(header, columns, f"{name}:1")
    told = False
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise DataInvalid(
                f"{name}:{number}: {_count(cells, 'cell')}, the header has {len(header)}; "
                "a tsv cell holds neither tab nor line break, and quotation marks mean nothing: correct the line"
            )
        row = Row(tuple(cells[i] for i in picked), f"{name}:{number}")
        if not told and any(_looks_quoted(cell) for cell in row.cells):
            told = True
            log.warning(
                "a tsv cell looks quoted as in csv; its quotation marks are kept as part of the text",
                extra={"at": row.place},
            )
        yield row


def _looks_quoted(cell: str) -> bool:
    """As csv writers quote a cell with marks in it: `"a ""good"" film"`."""
    return len(cell) > 4 and cell[0] == cell[-1] == '"' and '""' in cell[1:-1]


def _read_csv(text: str, columns: Sequence[str], name: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL_CHARS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    picked: list[int] = []
    header: list[str] = []
    blank = 0  # line of the last row without cells: fine at the end, nowhere else
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataInvalid(
                f"{name}:{line}: {error}; a cell with a quotation mark, comma or line break stands in quotation "
                'marks, and marks within it are doubled ("")'
            ) from error
        if cells is None:
            return
        if not header:
            header, picked = cells, _pick(cells, columns, f"{name}:1")
            continue
        if blank:
            raise DataInvalid(f"{name}:{blank}: the line is blank, and rows follow; remove it")
        if not cells:
            blank = line
            continue
        if len(cells) != len(header):
            raise DataInvalid(
                f"{name}:{line}: {_count(cells, 'cell')}, the header has {len(header)}; "
                "a cell with a comma stands in quotation marks: correct the line"
            )
        yield Row(tuple(cells[i] for i in picked), f"{name}:{line}")


def _read_jsonl(text: str, columns: Sequence[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), start=1):
        place = f"{name}:{number}"
        try:
            value = json.loads(line, object_pairs_hook=_once_each)
        except ValueError as error:
            raise DataInvalid(f"{place}: not a JSON object ({error}); write one object a line") from error
        if not isinstance(value, dict):
            raise DataInvalid(f"{place}: got {line.strip()[:40]}, expected a JSON object; write one object a line")
        _pick(list(value), columns, place)
        yield Row(tuple(value[column] for column in columns), place)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f'"{twice}" stands twice')
    return value


def _read_parquet(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with reading(name, DataInvalid), path.open("rb"):
        pass  # what fails from here on is the content
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
        picked = _pick(names, columns, name)
        batches = file.iter_batches(columns=[names[i] for i in picked])
        row = 0
        for batch in batches:
            for cells in zip(*(batch.column(column).to_pylist() for column in columns), strict=True):
                row += 1
                yield Row(cells, f"{name}, row {row}")
    except (pyarrow.ArrowException, OSError) as error:  # OSError without a number: damaged pages
        raise DataInvalid(f"{name}: not a whole parquet file ({first_line(error)}); copy it again") from error


def _pick(header: Sequence[str], columns: Sequence[str], place: str) -> list[int]:
    """Where each wanted column stands."""
    for column in columns:
        count = list(header).count(column)
        if count > 1:
            raise DataInvalid(f'{place}: {count} columns are named "{column}"; rename all but one')
        if count == 0:
            raise DataInvalid(f'{place}: no column "{column}"; {_hint(column, header)}')
    return [list(header).index(column) for column in columns]


def _hint(column: str, header: Sequence[str]) -> str:
    if len(header) == 1 and any(mark in header[0] for mark in "\t;,|"):
        return f"the only column is {header[0]!r}: name the file .csv or .tsv by what parts its cells (comma or tab)"
    return nearest(column, [str(name) for name in header])


def _quoted(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _count(cells: Sequence[str], noun: str) -> str:
    return f"{len(cells)} {noun}" + ("" if len(cells) == 1 else "s")
