"""Rows of tsv as GLUE writes it: a tab separates, and quotation marks mean nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distillchain_trainer.data.columns import Header, count_of
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.text_files import TextFile, cr_alone, numbered_lines
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings


def read_tsv(file: TextFile, header: Header, warnings: StageWarnings) -> Iterator[Row]:
    """The rows of a tsv file. Warns of cells that look quoted as in csv.

    Raises: DataInvalid naming file and line, during the iteration.
    """
    lines = numbered_lines(file)
    _, first = next(lines)
    # With CR alone as line end, the whole file is one line.
    if "\r" in first:
        raise cr_alone(file.name)
    names = first.split("\t")
    picked = header.pick(names, mark="\t")
    quotes = _Quotes(file.name)
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(names):
            more = "remove tabs within cells: a tsv cell cannot contain one, even in quotation marks"
            fewer = "add the missing ones (an empty cell needs its tab too); a tsv cell cannot contain a line break"
            raise DataInvalid(
                f"{file.name}:{number}: {count_of(cells, 'cell')}, the header has {len(names)}; "
                + (more if len(cells) > len(names) else fewer)
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
