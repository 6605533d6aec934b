"""The splits of a task as texts and class indices, from files, S3 or the hub. Knows no model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillchain_api.faults import got
from distillchain_api.task import Dataset
from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_store.errors import ObjectMissing
from distillchain_store.opening import open_store
from distillchain_store.store import path_of_uri
from distillchain_trainer.data.split import Split, TaskData, key_of
from distillchain_trainer.data.tables import Row, read_rows
from distillchain_trainer.errors import DataInvalid, reading
from distillchain_trainer.models import hub
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.text_classification.labels import LabelReader, UnknownLabel, find_name

log = logging.getLogger(__name__)

FIELD = "spec.task.dataset"


def read_task_data(
    task: Task, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are fetched into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    dataset = task.dataset
    names = {"train": dataset.splits.train, "validation": dataset.splits.validation}
    if dataset.splits.test:
        names["test"] = dataset.splits.test
    if dataset.uri.startswith("hf://"):
        splits, revision = _read_hub(task, names, folder, warnings)
    else:
        splits = {
            role: _split(task, role, _read_file(dataset, role, name, endpoint_url, region, folder), warnings)
            for role, name in names.items()
        }
        content = "".join(split.facts.sha256 for split in splits.values())
        revision = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
    return TaskData(splits["train"], splits["validation"], splits.get("test"), revision)


def _read_file(
    dataset: Dataset, role: str, name: str, endpoint_url: str | None, region: str | None, folder: Path
) -> Iterator[Row]:
    where = f"{FIELD}.splits.{role}"
    shown = f"{dataset.uri}/{name}"
    columns = [*dataset.text, dataset.label]
    if dataset.uri.startswith("file://"):
        path = path_of_uri(dataset.uri) / name
        with reading(f"{where}: {shown}", DataInvalid):
            if not path.is_file():
                there = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
                hint = f"the folder holds {', '.join(there[:8])}" if there else "there is no such folder"
                raise DataInvalid(f"{where}: {shown} does not exist; {hint}")
    else:
        store = open_store(dataset.uri, endpoint_url=endpoint_url, region=region, field=f"{FIELD}.uri")
        path = folder / role / Path(name).name
        try:
            store.download(name, path)
        except ObjectMissing as error:
            raise DataInvalid(f"{where}: {shown} does not exist; correct the name or upload the file") from error
    return read_rows(path, columns, name=shown)


def _read_hub(task: Task, names: dict[str, str], folder: Path, warnings: StageWarnings) -> tuple[dict[str, Split], str]:
    dataset = task.dataset
    tables, revision = hub.fetch_dataset(dataset.uri, dataset.config, names, folder=folder)
    splits = {}
    for role, table in tables.items():
        shown = f"{dataset.uri}, split {names[role]}"
        rows = hub_rows(table, task, shown)
        splits[role] = _split(task, role, rows, warnings)
    return splits, revision


def hub_rows(table: Any, task: Task, shown: str) -> Iterator[Row]:
    """Rows of a `datasets.Dataset`; ClassLabel numbers become their names, unless those only count the classes.

    Raises: DataInvalid for a name that is not one of the task's.
    """
    from distillchain_trainer.data.tables import _pick  # the same words for a missing column

    columns = [*task.dataset.text, task.dataset.label]
    _pick(table.column_names, columns, shown)
    names = list(getattr(table.features[task.dataset.label], "names", None) or [])
    by_name = names != [str(number) for number in range(len(names))]
    if by_name and any(find_name(name, task.labels) is None for name in names):
        raise DataInvalid(
            f"{shown}: its classes are {', '.join(names)}, spec.task.labels are {', '.join(task.labels)}; "
            "name the labels as the data set does, in any order"
        )
    arrays = [table[column][:] for column in columns]
    for number, cells in enumerate(zip(*arrays, strict=True), start=1):
        label = cells[-1]
        if by_name and isinstance(label, int) and 0 <= label < len(names):
            label = names[label]
        yield Row((*cells[:-1], label), f"{shown}, row {number}")


def _split(task: Task, role: str, rows: Iterator[Row], warnings: StageWarnings) -> Split:
    reader = LabelReader(task.labels)
    columns = task.dataset.text
    split = Split(role, [], [])
    for row in rows:
        texts = row.cells[:-1]
        for column, text in zip(columns, texts, strict=True):
            _check_text(text, f'{row.place}, column "{column}"')
        split.texts.append(texts)
        split.keys.append(key_of(texts))
        split.targets.append(_class_of(reader, row, task.dataset.label))
    _check_split(task, split, warnings)
    return split


def _check_text(text: object, place: str) -> None:
    if text is None or (isinstance(text, str) and not text.strip()):
        raise DataInvalid(f"{place}: the cell is empty; fill it or remove the row")
    if not isinstance(text, str):
        raise DataInvalid(f"{place}: {got(text)}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone in JSON: an emoji that was cut in two
        raise DataInvalid(
            f"{place}: character {error.start + 1} is {ascii(text[error.start])[1:-1]}, half of a surrogate pair; "
            "correct the text, or what cut it"
        ) from error


def _class_of(reader: LabelReader, row: Row, column: str) -> int:
    cell, place = row.cells[-1], f'{row.place}, column "{column}"'
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise DataInvalid(f"{place}: the cell is empty; fill it or remove the row")
    try:
        return reader.index_of(cell)
    except (UnknownLabel, TypeError) as error:
        words = str(error) if isinstance(error, UnknownLabel) else "expected a class name or number"
        raise DataInvalid(f"{place}: {got(cell)}, {words}; correct the row or spec.task.labels") from error


def _check_split(task: Task, split: Split, warnings: StageWarnings) -> None:
    name = getattr(task.dataset.splits, split.name)
    where = f"{FIELD}.splits.{split.name}"
    if not len(split):
        raise DataInvalid(f"{where}: {task.dataset.uri}/{name} has no rows; expected at least one")
    present = set(split.targets)
    if len(present) == 1 and split.name == "validation":
        raise DataInvalid(
            f"{where}: every row of {task.dataset.uri}/{name} is of class {json.dumps(task.labels[present.pop()])}, "
            "so no model can be told from chance; add rows of the other classes"
        )
    absent = [label for index, label in enumerate(task.labels) if index not in present]
    if absent and split.name == "train":
        raise DataInvalid(
            f"{where}: no row of {task.dataset.uri}/{name} is of class {json.dumps(absent[0])}; "
            "add such rows or remove the class from spec.task.labels"
        )
    if absent:
        warnings.add(f"{where}: no row of {task.dataset.uri}/{name} is of class {', '.join(absent)}")
