"""Rows of plain text: one text on each line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from distillchain_trainer.data.row import Row
from distillchain_trainer.data.text_files import TextFile, cr_alone


def read_txt(file: TextFile) -> Iterator[Row]:
    """The lines of a file, blank ones too. Raises: DataInvalid naming file and line, during the iteration."""
    with contextlib.closing(file.lines(newline="\n")) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removesuffix("\n").removesuffix("\r")
            # With CR alone as line end, the whole file is one line.
            if number == 1 and "\r" in text:
                raise cr_alone(file.name)
            yield Row(number, (text,))
