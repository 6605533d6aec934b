"""Rows of Parquet, read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from distillchain_trainer.data.columns import pick_columns
from distillchain_trainer.data.row import Row
from distillchain_trainer.errors import DataInvalid, first_line


def read_parquet(path: Path, columns: Sequence[str], name: str) -> Iterator[Row]:
    """The rows of a Parquet file, numbered from 1. Raises: DataInvalid, during the iteration."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            wanted = [names[i] for i in pick_columns(names, columns, name)]
            number = 0
            # In batches, as the file may be larger than memory.
            for batch in file.iter_batches(columns=wanted):
                for cells in zip(*(batch.column(column).to_pylist() for column in wanted), strict=True):
                    number += 1
                    yield Row(number, cells)
    except (pyarrow.ArrowException, OSError) as error:  # OSError without a number: damaged pages
        raise DataInvalid(f"{name}: the Parquet file is damaged ({first_line(error)}); copy it again") from error
