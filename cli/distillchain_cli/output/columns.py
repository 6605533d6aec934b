"""Text in columns, as kubectl prints it: stable, two spaces apart, `-` for an empty cell. And numbers in short form."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

EMPTY = "-"
WIDTH = 100
GAP = "  "
NARROW = 12  # characters; narrower cells say little


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        right: align to the right, for numbers.
        is_name: cut last: the names of two objects may differ at their ends, and commands need them whole.
    """

    title: str
    right: bool = False
    is_name: bool = False


def format_columns(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None = WIDTH, wrap_last: bool = False
) -> str:
    """Lines of at most `width` characters (None: no limit). The widest left-aligned columns shrink until the lines fit,
    those of names last, and `...` marks a cell that is cut.

    Args:
        wrap_last: wrap the last column into further lines instead of cutting it.
    """
    cells = [[column.title for column in columns], *[[cell or EMPTY for cell in row] for row in rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    texts = [index for index, column in enumerate(columns) if not column.right]
    while width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width:
        others = [index for index in texts if not columns[index].is_name and widths[index] > NARROW]
        widest = max(others or texts, key=lambda index: widths[index])
        if widths[widest] <= len("..."):
            break
        widths[widest] -= 1
    if wrap_last:
        cells = [line for row in cells for line in _wrap(row, widths[-1])]
    return "\n".join(_line(columns, row, widths) for row in cells)


def _wrap(row: Sequence[str], width: int) -> list[list[str]]:
    first, *more = textwrap.wrap(row[-1], width, break_on_hyphens=False) or [EMPTY]
    return [[*row[:-1], first], *[[*[""] * (len(row) - 1), line] for line in more]]


def _line(columns: Sequence[Column], row: Sequence[str], widths: Sequence[int]) -> str:
    parts = []
    for column, cell, width in zip(columns, row, widths, strict=True):
        shown = cell if len(cell) <= width else cell[: width - 3] + "..."
        parts.append(shown.rjust(width) if column.right else shown.ljust(width))
    return GAP.join(parts).rstrip()


def count(number: int | None) -> str:
    """`22.7M`: a number of parameters."""
    if number is None:
        return EMPTY
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size * 0.9995:  # 999,960 reads 1.0M, not 1000.0K
            return f"{number / size:.1f}{unit}"
    return str(number)


def size(size_bytes: int | None) -> str:
    """`90.9 MB`: decimal units, as object stores count."""
    if size_bytes is None:
        return EMPTY
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= step * 0.9995:
            return f"{size_bytes / step:.1f} {unit}"
    return f"{size_bytes} B"


def duration(seconds: float | str | None) -> str:
    """`0:00:41`."""
    if seconds is None:
        return EMPTY
    whole = round(float(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def rate(text: str | float | None) -> str:
    """Examples per second: a whole number from 10 on."""
    if text is None:
        return EMPTY
    value = float(text)
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def age(seconds: float | None) -> str:
    """`41s`, `12m`, `5h`, `3d`: as kubectl does, in the largest unit that gives at least 2."""
    if seconds is None:
        return EMPTY
    for unit, size_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size_s:
            return f"{int(seconds // size_s)}{unit}"
    return f"{int(seconds)}s"
