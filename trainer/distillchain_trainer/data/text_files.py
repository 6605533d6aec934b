"""Text files as streams of lines, perhaps compressed: encoding, line ends and blank lines. Knows no columns."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from distillchain_trainer.data.content import HEAD_BYTES, check_compressed
from distillchain_trainer.errors import DataInvalid, reading


@dataclass(frozen=True)
class TextFile:
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

    def lines(self, *, newline: str) -> Generator[str]:
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


def numbered_lines(file: TextFile) -> Iterator[tuple[int, str]]:
    """Lines without CR and LF, from 1; blank lines at the end are left out.

    Not splitlines(), which also breaks at U+2028, U+0085 and form feeds within texts.
    """
    blank = 0  # the last line, if it is blank: allowed at the end only
    with contextlib.closing(file.lines(newline="\n")) as lines:
        for number, line in enumerate(lines, start=1):
            content = line.removesuffix("\n").removesuffix("\r")
            if not content:
                blank = blank or number
                continue
            if blank:
                raise blank_line(file.name, blank)
            yield number, content


def blank_line(name: str, number: int) -> DataInvalid:
    """The error for a blank line between rows."""
    return DataInvalid(f"{name}:{number}: the line is blank, and rows follow; remove it")


def cr_alone(name: str) -> DataInvalid:
    """The error for line ends that no reader here splits at."""
    return DataInvalid(
        f"{name}: its lines end in CR alone, as on old Macs; convert the line ends to LF, for example with "
        "`tr '\\r' '\\n'`"
    )
