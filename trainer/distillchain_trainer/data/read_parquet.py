"""Rows of Parquet, read in batches, and the names of classes that the library datasets writes beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distillchain_trainer.data.class_labels import class_names
from distillchain_trainer.data.columns import pick_columns
from distillchain_trainer.data.row import Row
from distillchain_trainer.errors import DataInvalid, first_line


def read_parquet(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    """The rows of a Parquet file, numbered from 1. Raises: DataInvalid, during the iteration."""
    with _opened(path, name) as file:
        names = list(file.schema_arrow.names)
        wanted = [names[i] for i in pick_columns(names, columns, name)]
        number = 0
        # In batches, as the file may be larger than memory.
        for batch in file.iter_batches(columns=wanted):
            for cells in zip(*(batch.column(column).to_pylist() for column in wanted), strict=True):
                number += 1
                yield Row(number, cells)


def read_class_names(path: Path, column: str, name: str) -> tuple[str, ...]:
    """See Table.class_names, for one column of a Parquet file. Raises: DataInvalid."""
    with _opened(path, name) as file:
        written = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(written or b"{}")["info"]["features"]
    except (ValueError, KeyError, TypeError):  # another program may use the same key for something else
        return ()
    return class_names(features, column) if isinstance(features, dict) else ()


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:  # OSError without a number: damaged pages
        raise DataInvalid(f"{name}: the Parquet file is damaged ({first_line(error)}); copy it again") from error
