"""The splits of a task as texts and class indices, from files, S3 or the hub. Knows no model."""

from __future__ import annotations

import json
from pathlib import Path

from distillchain_api.faults import got
from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_trainer.data.held_out import warn_of_contradictions
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import LabelReader, UnknownLabel, shorten, with_names
from distillchain_trainer.tasks.sequences.rows import read_rows, refuse_empty
from distillchain_trainer.tasks.sources import FIELD, read_splits


def read_task_data(
    task: Task, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are downloaded into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    data = read_splits(
        task.dataset,
        [*task.dataset.text, task.dataset.label],
        lambda role, table, source: _split(task, role, table, source, folder, warnings),
        endpoint_url=endpoint_url,
        region=region,
        folder=folder,
        warnings=warnings,
        class_names=task.labels,
    )
    warn_of_contradictions(data.train, warnings)
    return data


def _split(task: Task, role: str, table: Table, source: str, folder: Path, warnings: StageWarnings) -> Split:
    table = with_names(table, task.labels, shown=source)
    reader, label = LabelReader(task.labels), task.dataset.label
    split = read_rows(
        role,
        table,
        source,
        text=task.dataset.text,
        label=label,
        read=lambda cell: _class_of(reader, cell),
        folder=folder,
    )
    _check_split(task, split, source, warnings)
    if reader.other_case:
        pairs = shorten([f"{cell} for {name}" for cell, name in reader.other_case.items()])
        warnings.add(f'{source}, column "{label}": class names differ from spec.task.labels in case: {pairs}')
    return split


def _class_of(reader: LabelReader, cell: object) -> int:
    """The class that a cell names. Raises: ValueError with the reason."""
    refuse_empty(cell)
    try:
        return reader.index_of(cell)
    except (UnknownLabel, TypeError) as error:  # TypeError: a list cannot be looked up
        expectation = str(error) if isinstance(error, UnknownLabel) else "expected a class name or number"
        raise ValueError(f"{got(cell)}, {expectation}; correct the row or spec.task.labels") from error


def _check_split(task: Task, split: Split, source: str, warnings: StageWarnings) -> None:
    where = f"{FIELD}.splits.{split.name}"
    present = set(split.targets)
    if len(present) == 1 and split.name == "validation":
        raise DataInvalid(
            f"{where}: every row of {source} is of class {json.dumps(task.labels[present.pop()], ensure_ascii=False)}, "
            "so no model can be distinguished from chance; add rows of the other classes"
        )
    absent = [label for index, label in enumerate(task.labels) if index not in present]
    # Refused only in train: the student could never learn the class. Elsewhere it is a warning.
    if absent and split.name == "train":
        raise DataInvalid(
            f"{where}: no row of {source} is of class {json.dumps(absent[0], ensure_ascii=False)}; "
            "add such rows or remove the class from spec.task.labels"
        )
    if absent:
        warnings.add(f"{where}: no row of {source} is of class {shorten(absent)}, so no metric covers it")
