"""The texts of some validation rows, which the report shows beside the answers of the models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from distillchain_api.wire.records import EXAMPLES_FILE, Example
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV


def may_keep_texts() -> bool:
    """Whether texts may be copied into the store."""
    return os.environ.get(KEEP_TEXTS_ENV) != "0"


def write_examples(folder: Path, rows: Iterable[int], texts_of: Callable[[int], list[str]]) -> None:
    """Writes the texts of some rows into `folder`, in the order of the split, as the predictions are.

    Args:
        texts_of: those of a row, as short as they are shown.
    """
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as file:
        for row in sorted(rows):
            file.write(Example(row=row, text=texts_of(row)).to_json() + "\n")
