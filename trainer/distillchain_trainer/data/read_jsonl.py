"""Rows of jsonl: one object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from distillchain_trainer.data.columns import NoColumn, pick_columns
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.text_files import TextFile, cr_alone, numbered_lines
from distillchain_trainer.errors import DataInvalid


def read_jsonl(file: TextFile, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file with one JSON object per line.

    Raises: DataInvalid naming file and line, during the iteration.
    """
    keys: list[str] = []
    picked: list[str] = []
    for number, line in numbered_lines(file):
        try:
            # json keeps the last of several equal keys without a word.
            value = json.loads(line, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            # With CR alone as line end, the whole file is one line, which is not JSON.
            if "\r" in line:
                raise cr_alone(file.name) from error
            raise DataInvalid(f"{file.name}:{number}: not a JSON object ({_why(error, line)}") from error
        if not isinstance(value, dict):
            raise DataInvalid(
                f"{file.name}:{number}: got {line.strip()[:40]}, expected a JSON object; write one object per line"
            )
        if not value:
            raise NoColumn(f"{file.name}:{number}", columns[0], "; the object is empty; fill it or remove the line")
        # Most rows have the same keys in the same order, so columns are rarely looked up again.
        if list(value) != keys:
            keys = list(value)
            picked = [keys[i] for i in pick_columns(keys, columns, f"{file.name}:{number}")]
        yield Row(number, tuple([value[key] for key in picked]))


def _why(error: Exception, line: str) -> str:
    """What is wrong with a line, the bracket that ends it, and the remedy."""
    if isinstance(error, json.JSONDecodeError):
        if error.msg == "Extra data" and line[error.pos :].strip() == ",":
            return "a comma follows it); remove the comma"
        # As str() and print() write a dict.
        is_python = line.lstrip().startswith("{'")
        remedy = "write it with json.dumps, which uses double quotes" if is_python else "write one object per line"
        return f"{error.msg}: column {error.colno}); {remedy}"
    if isinstance(error, RecursionError):
        return "nested too deeply); write one flat object per line"
    # Of a number, Python also names a function that allows more digits.
    return f"{str(error).partition('; ')[0]}); write one object per line"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [key for key, _ in pairs]
        repeated = next(key for key in names if names.count(key) > 1)
        raise ValueError(f'the key "{repeated}" occurs twice')
    return value
