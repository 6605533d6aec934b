"""The splits of a task as texts and class indices, from files, S3 or the hub. Knows no model."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillchain_api.faults import got
from distillchain_api.task import Dataset
from distillchain_api.tasks.text_classification import TextClassification as Task
from distillchain_store.errors import ObjectMissing
from distillchain_store.opening import open_store
from distillchain_store.store import path_of_uri
from distillchain_trainer.data.columns import pick_columns
from distillchain_trainer.data.held_out import check_held_out, warn_of_contradictions
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.split import Split, TaskData, key_of
from distillchain_trainer.data.tables import Table, read_table
from distillchain_trainer.errors import DataInvalid, reading
from distillchain_trainer.models import hub
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.text_classification.labels import LabelReader, UnknownLabel, find_name, shorten

FIELD = "spec.task.dataset"
EMPTY = "the cell is empty; fill it or remove the row"
HUB_ROWS = 1_000  # read from a hub data set at a time; bounds the memory of their Python objects


def read_task_data(
    task: Task, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are downloaded into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    dataset = task.dataset
    names = {"train": dataset.splits.train, "validation": dataset.splits.validation}
    if dataset.splits.test:
        names["test"] = dataset.splits.test
    if dataset.uri.startswith("hf://"):
        tables, revision = hub.fetch_dataset(dataset.uri, dataset.config, names, folder=folder)
        sources = {role: f"{dataset.uri}, split {name}" for role, name in names.items()}
        splits = {
            role: _split(task, role, hub_rows(table, task, sources[role]), sources[role], warnings)
            for role, table in tables.items()
        }
    else:
        sources = {role: f"{dataset.uri}/{name}" for role, name in names.items()}
        splits = {}
        for role, name in names.items():
            path = _locate(dataset, role, name, endpoint_url, region, folder)
            table = read_table(
                path,
                [*dataset.text, dataset.label],
                name=sources[role],
                warnings=warnings,
                class_names=task.labels,
            )
            splits[role] = _split(task, role, table, sources[role], warnings)
        # A folder has no commit as the hub has; the contents take its place.
        content = "".join(split.facts.sha256 for split in splits.values())
        revision = "sha256:" + hashlib.sha256(content.encode()).hexdigest()
    check_held_out(list(splits.values()), sources, warnings)
    warn_of_contradictions(splits["train"], warnings)
    return TaskData(splits["train"], splits["validation"], splits.get("test"), revision)


def _locate(dataset: Dataset, role: str, name: str, endpoint_url: str | None, region: str | None, folder: Path) -> Path:
    """The local file of a split."""
    where = f"{FIELD}.splits.{role}"
    shown = f"{dataset.uri}/{name}"
    if dataset.uri.startswith("file://"):
        with reading(f"{where}: {shown}", DataInvalid):
            return _local_file(path_of_uri(dataset.uri) / name, where, shown)
    store = open_store(dataset.uri, endpoint_url=endpoint_url, region=region, field=f"{FIELD}.uri")
    # A folder per split: two splits may have files of the same name in different folders.
    path = folder / role / Path(name).name
    try:
        store.download(name, path)
    except ObjectMissing as error:
        raise DataInvalid(f"{where}: {shown} does not exist; correct the name or upload the file") from error
    return path


def _local_file(path: Path, where: str, shown: str) -> Path:
    if path.is_file():
        return path
    found = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    # Some systems store "é" in a file name as one character, others as two.
    same = [name for name in found if _composed(name) == _composed(path.name)]
    if len(same) == 1 and (path.parent / same[0]).is_file():
        return path.parent / same[0]
    hint = f"the folder has {', '.join(found[:8])}" if found else "there is no such folder"
    raise DataInvalid(f"{where}: {shown} does not exist; {hint}")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def hub_rows(table: Any, task: Task, shown: str) -> Table:
    """Rows of a `datasets.Dataset`; ClassLabel numbers become their names, unless those only count the classes.

    Raises: DataInvalid for a missing column, and for a class name that is not one of the task's.
    """
    header = list(table.column_names)
    columns = [header[i] for i in pick_columns(header, [*task.dataset.text, task.dataset.label], shown)]
    names = list(getattr(table.features[columns[-1]], "names", None) or [])
    # Names "0", "1", ... only count the classes, so the numbers are taken as they are.
    by_name = names != [str(number) for number in range(len(names))]
    if by_name and any(find_name(name, task.labels) is None for name in names):
        raise DataInvalid(
            f"{shown}: its classes are {shorten(names)}, spec.task.labels are {shorten(task.labels)}; "
            "name the labels as the data set does, in any order"
        )
    return Table(f"{shown}, row ", _hub_rows(table.select_columns(columns), columns, names if by_name else []))


def _hub_rows(table: Any, columns: list[str], names: list[str]) -> Iterator[Row]:
    number = 0
    for batch in table.iter(HUB_ROWS):
        for cells in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            label = cells[-1]
            # -1 marks a hidden label, as in GLUE's test splits. It stays a number and is refused with its row.
            if isinstance(label, int) and 0 <= label < len(names):
                label = names[label]
            yield Row(number, (*cells[:-1], label))


def _split(task: Task, role: str, table: Table, source: str, warnings: StageWarnings) -> Split:
    reader = LabelReader(task.labels)
    columns = task.dataset.text
    split = Split(role, [], [], place_prefix=table.place_prefix)
    for row in table.rows:
        # The cells are in the order of the wanted columns: the texts, then the label.
        texts = row.cells[:-1]
        for column, text in zip(columns, texts, strict=True):
            fault = _fault_of_text(text)
            if fault is not None:
                raise DataInvalid(f'{table.place(row)}, column "{column}": {fault}')
        split.texts.append(texts)
        split.keys.append(key_of(texts))
        try:
            split.targets.append(_class_of(reader, row.cells[-1]))
        except ValueError as error:
            raise DataInvalid(f'{table.place(row)}, column "{task.dataset.label}": {error}') from error
        split.numbers.append(row.number)
    _check_split(task, split, source, warnings)
    if reader.other_case:
        pairs = shorten([f"{cell} for {label}" for cell, label in reader.other_case.items()])
        warnings.add(
            f'{source}, column "{task.dataset.label}": class names differ from spec.task.labels in case: {pairs}'
        )
    return split


def _fault_of_text(text: object) -> str | None:
    """Why a cell cannot be used as text."""
    # None is null in Parquet and JSON.
    if text is None or (isinstance(text, str) and not text.strip()):
        return EMPTY
    if not isinstance(text, str):
        return f"{got(text)}, expected text"
    try:
        text.encode()
    except UnicodeEncodeError as error:  # "\ud83d" alone in JSON: an emoji that was cut in two
        return (
            f"character {error.start + 1} is {ascii(text[error.start])[1:-1]}, half of a surrogate pair; "
            "correct the text, or the program that cut it"
        )
    return None


def _class_of(reader: LabelReader, cell: object) -> int:
    """The class that a cell names. Raises: ValueError with the reason."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise ValueError(EMPTY)
    try:
        return reader.index_of(cell)
    except (UnknownLabel, TypeError) as error:  # TypeError: a list cannot be looked up
        expectation = str(error) if isinstance(error, UnknownLabel) else "expected a class name or number"
        raise ValueError(f"{got(cell)}, {expectation}; correct the row or spec.task.labels") from error


def _check_split(task: Task, split: Split, source: str, warnings: StageWarnings) -> None:
    where = f"{FIELD}.splits.{split.name}"
    if not len(split):
        raise DataInvalid(f"{where}: {source} has no rows; expected at least one")
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
