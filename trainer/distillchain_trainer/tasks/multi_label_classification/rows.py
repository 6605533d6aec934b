"""The splits of a task as texts and sets of labels, from files, S3 or the hub. Knows no model.

A target is the sorted list of the indices of a row's labels: short, and the same however a file orders the labels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from distillchain_api.faults import got
from distillchain_api.tasks.multi_label_classification import MultiLabelClassification as Task
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.tables import Table
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import LabelReader, UnknownLabel, shorten, with_names
from distillchain_trainer.tasks.sequences.rows import read_rows
from distillchain_trainer.tasks.sources import FIELD, read_splits


def read_task_data(
    task: Task, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are downloaded into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    return read_splits(
        task.dataset,
        [*task.dataset.text, task.dataset.label],
        lambda role, table, source: _split(task, role, table, source, folder, warnings),
        endpoint_url=endpoint_url,
        region=region,
        folder=folder,
        warnings=warnings,
        class_names=task.labels,
    )


def _split(task: Task, role: str, table: Table, source: str, folder: Path, warnings: StageWarnings) -> Split:
    table = with_names(table, task.labels, shown=source)
    reader, column = LabelReader(task.labels), task.dataset.label
    split = read_rows(
        role,
        table,
        source,
        text=task.dataset.text,
        label=column,
        read=lambda cell: _labels_of(reader, cell, task.dataset.separator),
        folder=folder,
    )
    _check_split(task, split, source, warnings)
    if reader.other_case:
        pairs = shorten([f"{cell} for {name}" for cell, name in reader.other_case.items()])
        warnings.add(f'{source}, column "{column}": class names differ from spec.task.labels in case: {pairs}')
    return split


def _labels_of(reader: LabelReader, cell: object, separator: str) -> list[int]:
    """The labels of a row. Raises: ValueError with the reason."""
    if cell is None:
        return []
    if isinstance(cell, str):
        # JSON in a csv cell, as pandas writes a list, would be read as labels with brackets in their names.
        if cell.strip().startswith("["):
            raise ValueError(
                f"{got(cell)}, expected labels separated by {separator!r}; write them without brackets and quotation "
                "marks, or use jsonl or parquet with lists"
            )
        parts: Sequence[object] = cell.split(separator) if cell.strip() else []
    elif isinstance(cell, list | tuple):
        parts = cell
    else:
        # A number or truth value would be a single label, and is more likely a column of another task.
        raise ValueError(  # noqa: TRY004 - a fault of the data, like the others here
            f"{got(cell)}, expected a list of labels, or a text with labels separated by {separator!r}; for a column "
            "with one class in each row use task type TextClassification"
        )
    found = [_index_of(reader, part, cell) for part in parts]
    if len(set(found)) != len(found):
        # As scikit-learn writes them: 0 or 1 for each label.
        flags = set(parts) <= {0, 1, "0", "1"}
        remedy = (
            "write the numbers of the labels that apply, not 0 or 1 for each" if flags else "remove the repeated one"
        )
        raise ValueError(f"{got(cell)}, expected each label once; {remedy}")
    return sorted(found)


def _other_separator(reader: LabelReader, text: str) -> str | None:
    """The mark between the labels of a text; None: it has no other one than spec.task.dataset.separator."""
    for mark in (mark for mark in ";|/,\t" if mark in text):
        with contextlib.suppress(UnknownLabel):
            if [reader.index_of(part) for part in text.split(mark)]:
                return mark
    return None


def _index_of(reader: LabelReader, part: object, cell: object) -> int:
    if part is None or (isinstance(part, str) and not part.strip()):
        raise ValueError(f"{got(cell)}, expected a label between two separators; remove the one that is too many")
    try:
        return reader.index_of(part)
    except (UnknownLabel, TypeError) as error:
        mark = _other_separator(reader, part) if isinstance(part, str) else None
        if mark:
            raise ValueError(
                f"{got(part)}, expected another separator; write separator: {mark!r} in {FIELD}"
            ) from error
        # TypeError: a list within a list cannot be looked up.
        expectation = str(error) if isinstance(error, UnknownLabel) else "expected a label's name or number"
        raise ValueError(f"{got(part)}, {expectation}; correct the row or spec.task.labels") from error


def _check_split(task: Task, split: Split, source: str, warnings: StageWarnings) -> None:
    where = f"{FIELD}.splits.{split.name}"
    if split.name == "validation" and len({tuple(target) for target in split.targets}) == 1:
        labels = json.dumps([task.labels[index] for index in split.targets[0]], ensure_ascii=False)
        raise DataInvalid(
            f"{where}: every row of {source} has the labels {labels}, so no model can be distinguished from chance; "
            "add rows with other labels"
        )
    present = {index for target in split.targets for index in target}
    absent = [label for index, label in enumerate(task.labels) if index not in present]
    # Refused only in train: the student could never learn the label. Elsewhere it is a warning.
    if absent and split.name == "train":
        raise DataInvalid(
            f"{where}: no row of {source} has the label {json.dumps(absent[0], ensure_ascii=False)}; "
            "add such rows or remove the label from spec.task.labels"
        )
    if absent:
        warnings.add(f"{where}: no row of {source} has the label {shorten(absent)}, so no metric covers it")
