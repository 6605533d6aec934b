"""The splits of a task as texts and numbers, from files, S3 or the hub. Knows no model."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from distillchain_api.faults import got
from distillchain_api.metrics import significant
from distillchain_api.tasks.regression import Regression as Task
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sequences.rows import read_rows, refuse_empty
from distillchain_trainer.tasks.sources import FIELD, read_splits

# As JSON, csv and pandas write numbers. float() would also read "1_0", "nan" and digits of other scripts.
NUMBER = re.compile(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", re.ASCII)
WITH_COMMAS = re.compile(r"\s*[-+]?[0-9][0-9.,'\s]*,[0-9][0-9.,'\s]*\s*")
COARSE = 0.01  # of the spread of the numbers: a rounding error that metrics begin to show
LARGEST = 1e30  # float32 ends at 3.4e38, and squares of differences must still be finite after standardisation


def read_task_data(
    task: Task, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are downloaded into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    columns = [*task.dataset.text, task.dataset.label]
    data = read_splits(
        task.dataset,
        columns,
        lambda role, table, source: _split(task, role, table, source, folder),
        endpoint_url=endpoint_url,
        region=region,
        folder=folder,
        warnings=warnings,
    )
    _warn_of_rounding(data.train, warnings)
    return data


def _warn_of_rounding(train: Split, warnings: StageWarnings) -> None:
    """Warns of numbers whose mean is so much larger than their spread that float32 rounds the differences away."""
    numbers = np.asarray(train.targets, dtype=np.float64)
    mean, spread = float(numbers.mean()), float(numbers.std())
    step = float(np.spacing(np.float32(abs(mean))))
    if step <= COARSE * spread:
        return
    shown = significant(mean, 4)
    warnings.add(
        f"{FIELD}.label: the numbers of train spread by {significant(spread, 4)} around {shown}, but models "
        f"compute in float32, which rounds such numbers to multiples of {significant(step, 4)}; subtract {shown} from "
        "all numbers of the data"
    )


def _split(task: Task, role: str, table: Table, source: str, folder: Path) -> Split:
    split = read_rows(
        role, table, source, text=task.dataset.text, label=task.dataset.label, read=number_of, folder=folder
    )
    # A single test row has a number too; only training and measuring need several.
    if role != "test" and len(set(split.targets)) == 1:
        why = "a student would learn nothing" if role == "train" else "no model can be distinguished from chance"
        raise DataInvalid(
            f"{FIELD}.splits.{role}: every row of {source} has the number {split.targets[0]:g}, so {why}; add rows "
            "with other numbers"
        )
    return split


def number_of(cell: object) -> float:
    """The number in a cell. Raises: ValueError with the reason."""
    refuse_empty(cell)
    if isinstance(cell, bool):
        raise ValueError(f"{got(cell)}, expected a number; for two classes use task type TextClassification")  # noqa: TRY004
    if isinstance(cell, str):
        if not NUMBER.fullmatch(cell):
            raise ValueError(f"{got(cell)}, expected a number such as 3.5{_hint(cell)}")
        number = float(cell)
    else:
        try:
            number = float(cell)  # type: ignore[arg-type]  # whatever a column holds
        # OverflowError: JSON has integers of any size.
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{got(cell)}, expected a number such as 3.5") from error
    # JSON as Python writes it, and Parquet, have NaN and infinities.
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"{got(cell)}, expected a finite number up to {LARGEST:g}; fill the cell or remove the row")
    return number


def _hint(cell: str) -> str:
    if WITH_COMMAS.fullmatch(cell):
        return "; write a decimal point instead of a comma, and no separators of thousands"
    if cell.strip().lower().lstrip("+-") in ("nan", "inf", "infinity", "na", "n/a", "null", "none"):
        return "; fill the cell or remove the row"
    return "; correct the row or spec.task.dataset.label"
