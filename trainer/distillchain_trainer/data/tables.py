"""Rows of csv, tsv, jsonl and parquet files, each with its place; what is ambiguous is refused.

Knows columns, not what they mean. Nothing is guessed: no quoting in tsv (as GLUE writes it), RFC 4180 in csv.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillchain_api.task import UNKNOWN_FILE
from distillchain_trainer.data.columns import Header, quoted
from distillchain_trainer.data.content import BOM, DECOMPRESS, EXPORT, check_content
from distillchain_trainer.data.read_csv import read_csv
from distillchain_trainer.data.read_jsonl import read_jsonl
from distillchain_trainer.data.read_parquet import read_class_names, read_parquet
from distillchain_trainer.data.read_tsv import read_tsv
from distillchain_trainer.data.read_txt import read_txt
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.text_files import TextFile
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings

FORMATS = (".csv", ".tsv", ".jsonl", ".parquet")
REMEDIES = {
    (".json", ".ndjson"): "write one object per line, into a file whose name ends in .jsonl",
    (".xlsx", ".xls", ".ods"): EXPORT,
    (".zip", ".bz2", ".xz", ".zst", ".parquet"): DECOMPRESS,  # .parquet: with .gz after it
    (".pkl", ".pickle", ".npy", ".feather", ".arrow"): "convert it to parquet",
}


@dataclass(frozen=True)
class Table:
    """The rows of one file or hub split; they can be iterated once.

    Attributes:
        place_prefix: the place of a row is this followed by its number.
        class_names: of the numbers in the last column, where the data set has them (ClassLabel).
    """

    place_prefix: str
    rows: Iterator[Row]
    class_names: tuple[str, ...] = ()

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
    lower = name.lower()
    plain = lower.removesuffix(".gz")
    ending = next((ending for ending in FORMATS if plain.endswith(ending)), None)
    # Parquet is compressed inside, and reading it needs random access, which a gzip stream does not allow.
    if ending is None or (ending == ".parquet" and plain != lower):
        raise DataInvalid(f"{name}: {UNKNOWN_FILE}{_remedy(plain)}")
    file = TextFile(path, name, is_compressed=plain != lower)
    head = file.read_head()
    # Before the columns are looked for: in a file of another kind, a missing column would be a misleading message.
    check_content(head, name, ending=ending, is_unpacked=file.is_compressed)
    if not head.removeprefix(BOM).strip():
        raise DataInvalid(f"{name}: the file is empty; expected rows with {quoted(columns)}")
    if ending == ".parquet":
        return Table(f"{name}, row ", read_parquet(path, columns, name), read_class_names(path, columns[-1], name))
    header = Header(columns, name, class_names)
    if ending == ".csv":
        rows = read_csv(file, header)
    elif ending == ".tsv":
        rows = read_tsv(file, header, warnings)
    else:
        rows = read_jsonl(file, columns)
    return Table(f"{name}:", rows)


def _remedy(name: str) -> str:
    return next((f"; {remedy}" for endings, remedy in REMEDIES.items() if name.endswith(endings)), "")


def read_lines(path: Path, *, name: str) -> Table:
    """The lines of a .txt file, each a row of one cell. Raises: DataInvalid, now or during the iteration."""
    file = TextFile(path, name, is_compressed=name.lower().endswith(".gz"))
    check_content(file.read_head(), name, ending=".txt", is_unpacked=file.is_compressed)
    return Table(f"{name}:", read_txt(file))
