"""Sentences of CoNLL files: a line for each word, in columns, and a blank line after each sentence.

Knows no tags. Columns are separated by tabs if any line of the file's beginning has one, otherwise by blanks. Comments
do not count for this: those of MultiCoNER have tabs in files whose columns are separated by blanks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from distillchain_trainer.data.row import Row
from distillchain_trainer.data.text_files import TextFile, cr_alone
from distillchain_trainer.errors import DataInvalid

DOCUMENT_START = "-DOCSTART-"
"""In a line of CoNLL-2003 that begins a document, with any number of columns; it is no word of a sentence."""
# Not all white space: a word such as "10 000" may have a no-break space within it.
BLANKS = re.compile(r"[ \t]+")


@dataclass(frozen=True)
class ConllColumns:
    """Numbers of the columns, counted from 1; None: the first one has the words, the last one the tags."""

    words: int | None = None
    tags: int | None = None

    def pick(self, count: int, place: str) -> tuple[int, int]:
        """The indices of words and tags in a line of `count` columns. Raises: DataInvalid."""
        if count < 2:
            raise DataInvalid(f"{place}: 1 column, expected a word and its tag with a tab or space between them")
        words, tags = self.words or 1, self.tags or count
        for field, number in (("words", words), ("tags", tags)):
            if number > count:
                raise DataInvalid(f"{place}: {count} columns, but spec.task.dataset.{field} is {number}; correct one")
        if words == tags:
            raise DataInvalid(
                f"{place}: words and tags are both in column {tags}; give their numbers in spec.task.dataset.words and "
                "spec.task.dataset.tags"
            )
        return words - 1, tags - 1


def read_conll(file: TextFile, columns: ConllColumns) -> Iterator[Row]:
    """The sentences of a file: a list of words and a list of tags, under the number of their first line.

    Raises: DataInvalid naming file and line, during the iteration.
    """
    is_checked = columns.words is not None
    with contextlib.closing(_sentences(file, columns)) as sentences:
        for row in sentences:
            if not is_checked and len(row.cells[0]) > 1:
                is_checked = True
                _check_words(row.cells[0], f"{file.name}:{row.number}")
            yield row


def _sentences(file: TextFile, columns: ConllColumns) -> Generator[Row]:
    head = file.read_head().split(b"\n")
    has_tabs = any(b"\t" in line.strip() for line in head if not line.startswith(b"# "))
    count = first = comment = 0
    picked = (0, 0)
    words: list[str] = []
    tags: list[str] = []
    with contextlib.closing(file.lines(newline="\n")) as lines:
        for number, line in enumerate(lines, start=1):
            content = line.removesuffix("\n").removesuffix("\r")
            if "\r" in content:
                raise cr_alone(file.name)
            # Some writers end a sentence with a line of blanks or a tab.
            cells = _cells(content, has_tabs=has_tabs)
            if DOCUMENT_START in cells:
                cells = []
            if _is_comment(content, has_tabs=has_tabs):
                continue
            # Perhaps a comment: the line that decides the number of columns, or one that has another number.
            if content.startswith("# ") and not has_tabs and len(cells) != count:
                comment = number
            if cells and not count:
                count, picked = len(cells), columns.pick(len(cells), f"{file.name}:{number}")
            if cells and len(cells) != count:
                raise _other_count(file.name, number, len(cells), count, comment=comment)
            if cells:
                first = first if words else number
                words.append(cells[picked[0]])
                tags.append(cells[picked[1]])
            elif words:
                yield Row(first, (words, tags))
                words, tags = [], []
    if words:
        yield Row(first, (words, tags))


def _cells(content: str, *, has_tabs: bool) -> list[str]:
    if not content.strip():
        return []
    return content.split("\t") if has_tabs else BLANKS.split(content.strip(" \t"))


def _is_comment(content: str, *, has_tabs: bool) -> bool:
    """Whether a line is one as CoNLL-U or MultiCoNER write them. A word may also begin with #."""
    if has_tabs:
        return content.startswith("#") and "\t" not in content
    return content.startswith("# ") and "\t" in content.strip()


def _check_words(words: list[str], place: str) -> None:
    """That the first column, which nobody has chosen, does not count the words of a sentence, as in CoNLL-U."""
    counts = [[str(number) for number in range(start, start + len(words))] for start in (0, 1)]
    if words in counts:
        raise DataInvalid(
            f"{place}: the first column numbers the words of a sentence; write into spec.task.dataset.words the number "
            'of the column that has the words, such as words: "2"'
        )


def _other_count(name: str, number: int, found: int, expected: int, *, comment: int) -> DataInvalid:
    """
    Args:
        comment: a line that may be a comment; 0: there is none.
    """
    columns = "1 column" if found == 1 else f"{found} columns"
    remedy = "a sentence ends with a blank line, and columns are separated by tabs, or by spaces in a file without tabs"
    if comment:
        remedy = (
            f"line {comment} begins with #: remove it if it is a comment, and all others (in a file whose columns are "
            "separated by spaces, only a comment with a tab in it is skipped)"
        )
    return DataInvalid(f"{name}:{number}: {columns}, the lines before have {expected}; {remedy}")
