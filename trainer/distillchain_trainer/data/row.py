"""One row of a data file."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """The wanted cells of one row in the order of the wanted columns, and its line or row number."""

    number: int
    cells: tuple[Any, ...]
