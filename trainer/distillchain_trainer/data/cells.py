"""Whether a cell of a data file can be used as text."""

from __future__ import annotations

from distillchain_api.faults import got

EMPTY = "the cell is empty; fill it or remove the row"


def is_empty(cell: object) -> bool:
    """Whether a cell has no content; null in Parquet and JSON is None."""
    return cell is None or (isinstance(cell, str) and not cell.strip())


def fault_of_text(cell: object) -> str | None:
    """Why a cell cannot be used as text; None: it can."""
    if is_empty(cell):
        return EMPTY
    if not isinstance(cell, str):
        return f"{got(cell)}, expected text; convert it to text, or name another column"
    try:
        cell.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone in JSON: an emoji that was cut in two
        return (
            f"character {error.start + 1} is {ascii(cell[error.start])[1:-1]}, half of a surrogate pair; "
            "correct the text, or the program that cut it"
        )
    return None
