"""The splits of a data set, from files, S3 or the hub, as tables of the wanted columns. Knows no task type."""

from __future__ import annotations

import contextlib
import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distillchain_api.task import Dataset
from distillchain_store.errors import ObjectMissing
from distillchain_store.opening import open_store
from distillchain_store.store import path_of_uri
from distillchain_trainer.data.class_labels import class_names as class_names_of
from distillchain_trainer.data.columns import NoColumn, pick_columns
from distillchain_trainer.data.held_out import check_held_out
from distillchain_trainer.data.row import Row
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.tables import Table, read_table
from distillchain_trainer.errors import DataInvalid, reading
from distillchain_trainer.input_cache import input_cache
from distillchain_trainer.models import hub
from distillchain_trainer.stage_warnings import StageWarnings

FIELD = "spec.task.dataset"
NO_LABELS = f"; if no row has one, remove {FIELD}.splits.test"  # public test sets often hide their labels
SAVED_DATA_SET = ("state.json", "dataset_dict.json")  # what save_to_disk() of `datasets` writes beside Arrow files
HUB_ROWS = 1_000  # read from a hub data set at a time; bounds the memory of their Python objects

ReadSplit = Callable[[str, Table, str], Split]
"""Reads the rows of one split: its role, its table, and what messages call its file or hub split."""
OfFile = Callable[[Path, str], Table]
"""The table of a file, and what messages call it."""


def read_splits(
    dataset: Dataset,
    columns: Sequence[str],
    read: ReadSplit,
    *,
    of_file: OfFile | None = None,
    endpoint_url: str | None,
    region: str | None,
    folder: Path,
    warnings: StageWarnings,
    class_names: Sequence[str] = (),
) -> TaskData:
    """All splits, checked to be held out. Files of S3 are downloaded into `folder`.

    Args:
        columns: the wanted ones, in the order of a row's cells.
        of_file: for a task with file formats of its own; None: `read_table` with the columns.
        class_names: the first line of a file is probably not a header if it contains one of them.
    Raises: DataInvalid naming file, line and column.
    """
    names = {"train": dataset.splits.train, "validation": dataset.splits.validation}
    if dataset.splits.test:
        names["test"] = dataset.splits.test
    is_on_hub = dataset.uri.startswith("hf://")
    sources = {
        role: f"{dataset.uri}, split {name}" if is_on_hub else f"{dataset.uri}/{name}" for role, name in names.items()
    }
    tables, commit = hub.fetch_dataset(dataset.uri, dataset.config, names, folder=folder) if is_on_hub else ({}, "")

    def table_of(role: str) -> Table:
        if is_on_hub:
            return hub_table(tables[role], columns, sources[role])
        path = locate(dataset.uri, names[role], f"{FIELD}.splits.{role}", endpoint_url, region, folder / role)
        if of_file is not None:
            return of_file(path, sources[role])
        return read_table(path, columns, name=sources[role], warnings=warnings, class_names=class_names)

    splits: dict[str, Split] = {}
    for role in names:
        with naming_fields(dataset, role, columns):
            splits[role] = read(role, table_of(role), sources[role])
    # A folder has no commit as the hub has; the contents take its place.
    content = "".join(split.facts.sha256 for split in splits.values())
    revision = commit or "sha256:" + hashlib.sha256(content.encode()).hexdigest()
    check_held_out(list(splits.values()), sources, warnings)
    return TaskData(splits["train"], splits["validation"], splits.get("test"), revision)


@contextlib.contextmanager
def naming_fields(dataset: Dataset, role: str, columns: Sequence[str]) -> Iterator[None]:
    """Adds the field of the data set that names a column to the error that the column is missing."""
    try:
        yield
    except NoColumn as error:
        fields = type(dataset).model_fields.keys() - Dataset.model_fields.keys()
        named = (field for field in sorted(fields) if error.column in _names(getattr(dataset, field)))
        # The last column has the labels, or what else stands beside a text.
        unlabelled = role == "test" and len(columns) > 1 and error.column == columns[-1]
        raise error.named_by(f"{FIELD}.{next(named)}", more=NO_LABELS if unlabelled else "") from error


def _names(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def locate(
    uri: str,
    name: str,
    where: str,
    endpoint_url: str | None,
    region: str | None,
    folder: Path,
    *,
    field: str = FIELD,
) -> Path:
    """The local file `name` of the folder `uri`; one of S3 is downloaded into `folder`.

    Args:
        where: the field that names the file, for messages.
        field: the one that has `uri`.
    Raises: DataInvalid.
    """
    shown = f"{uri}/{name}"
    if uri.startswith("file://"):
        with reading(f"{where}: {shown}", DataInvalid):
            return _local_file(path_of_uri(uri) / name, where, shown)
    store = open_store(uri, endpoint_url=endpoint_url, region=region, field=f"{field}.uri", cache=input_cache())
    # A folder per split: two splits may have files of the same name in different folders.
    path = folder / Path(name).name
    try:
        store.download(name, path)
    except ObjectMissing as error:
        raise DataInvalid(f"{where}: {shown} does not exist; correct the name or upload the file") from error
    return path


def _local_file(path: Path, where: str, shown: str) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        remedy = "join the files in it, and name the result"
        if any((path / name).is_file() for name in SAVED_DATA_SET):
            remedy = "write the data set with load_from_disk(...) and to_parquet(...), and name the Parquet file"
        raise DataInvalid(f"{where}: {shown} is a folder, expected a file; {remedy}")
    if path.is_symlink():
        raise DataInvalid(f"{where}: {shown} is a link to a file that does not exist; copy the file itself")
    found = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
    # Some systems store "é" in a file name as one character, others as two.
    same = [name for name in found if _composed(name) == _composed(path.name)]
    if len(same) == 1 and (path.parent / same[0]).is_file():
        return path.parent / same[0]
    hint = f"the folder has {', '.join(found[:8])}" if found else "there is no such folder"
    raise DataInvalid(f"{where}: {shown} does not exist; {hint}")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def hub_table(table: Any, columns: Sequence[str], shown: str) -> Table:
    """The wanted columns of a `datasets.Dataset`, their cells as they are. Raises: DataInvalid for a missing column."""
    header = list(table.column_names)
    picked = [header[i] for i in pick_columns(header, columns, shown)]
    names = class_names_of(table.features.to_dict(), picked[-1])
    return Table(f"{shown}, row ", _numbered(table.select_columns(picked), picked), names)


def _numbered(table: Any, columns: Sequence[str]) -> Iterator[Row]:
    number = 0
    for batch in table.iter(HUB_ROWS):
        for cells in zip(*(batch[column] for column in columns), strict=True):
            number += 1
            yield Row(number, cells)
