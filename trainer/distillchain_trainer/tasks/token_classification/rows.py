"""The splits of a task as words and indices of tags, from files, S3 or the hub. Knows no model."""

from __future__ import annotations

from pathlib import Path

from distillchain_api.faults import got
from distillchain_api.tasks.token_classification import TokenClassification as Task
from distillchain_api.tasks.token_classification import WordsDataset
from distillchain_trainer.data.cells import fault_of_text
from distillchain_trainer.data.content import check_content
from distillchain_trainer.data.read_conll import ConllColumns, read_conll
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.data.split_writer import SplitWriter
from distillchain_trainer.data.tables import Table, read_table
from distillchain_trainer.data.text_files import TextFile
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import LabelReader, UnknownLabel, shorten, with_names
from distillchain_trainer.tasks.sources import FIELD, read_splits
from distillchain_trainer.tasks.token_classification.iob2 import Iob2Check

WITH_LISTS = (".jsonl", ".jsonl.gz", ".parquet")
"""Endings of files whose cells can be lists. Any other file is CoNLL."""


def read_task_data(
    task: Task, *, endpoint_url: str | None, region: str | None, folder: Path, warnings: StageWarnings
) -> TaskData:
    """All splits, checked. Files of S3 are downloaded into `folder`.

    Raises: DataInvalid naming file, line and column.
    """
    return read_splits(
        task.dataset,
        [task.dataset.words, task.dataset.tags],
        lambda role, table, source: _split(task, role, table, source, folder, warnings),
        of_file=lambda path, name: _table_of_file(task.dataset, path, name, warnings),
        endpoint_url=endpoint_url,
        region=region,
        folder=folder,
        warnings=warnings,
    )


def _table_of_file(dataset: WordsDataset, path: Path, name: str, warnings: StageWarnings) -> Table:
    plain = name.lower()
    if plain.endswith(WITH_LISTS):
        return read_table(path, [dataset.words, dataset.tags], name=name, warnings=warnings)
    file = TextFile(path, name, is_compressed=plain.endswith(".gz"))
    head = file.read_head()
    ending = Path(plain.removesuffix(".gz").rsplit("/", 1)[-1]).suffix
    check_content(head, name, ending=ending, is_unpacked=file.is_compressed)
    if not head.strip():
        raise DataInvalid(f"{name}: the file is empty; expected a line with a word and its tag for each word")
    columns = ConllColumns(words=_column_number(dataset, "words", name), tags=_column_number(dataset, "tags", name))
    return Table(f"{name}:", read_conll(file, columns))


def _column_number(dataset: WordsDataset, field: str, name: str) -> int | None:
    """The column of a CoNLL file that the spec names; None for the default. Raises: DataInvalid."""
    value = str(getattr(dataset, field))
    if value == WordsDataset.model_fields[field].default:
        return None
    if value.isascii() and value.isdecimal() and int(value) > 0:
        return int(value)
    raise DataInvalid(
        f'{FIELD}.{field}: got "{value}", expected the number of a column, counted from 1: {name} is read as CoNLL, '
        "whose columns have no names; a file with named columns ends in .jsonl or .parquet"
    )


def _split(task: Task, role: str, table: Table, source: str, folder: Path, warnings: StageWarnings) -> Split:
    table = with_names(table, task.labels, shown=source)
    reader, check = LabelReader(task.labels), Iob2Check(task.labels)
    writer = SplitWriter(folder / f"{role}-rows", role, place_prefix=table.place_prefix)
    for row in table.rows:
        place = table.place(row)
        words = _words(row.cells[0], place, task.dataset.words)
        tags = _tags(row.cells[1], words, reader, place, task.dataset.tags)
        check.look_at(tags, place)
        writer.add(words, tags, number=row.number)
    split = writer.close()
    where = f"{FIELD}.splits.{role}"
    if not len(split):
        raise DataInvalid(f"{where}: {source} has no rows; expected at least one")
    check.finish(role, where, source, warnings)
    if reader.other_case:
        pairs = shorten([f"{cell} for {label}" for cell, label in reader.other_case.items()])
        warnings.add(f"{source}: tags differ from spec.task.labels in case: {pairs}")
    return split


def _words(cell: object, place: str, column: str) -> tuple[str, ...]:
    """Raises: DataInvalid for anything but a list of words."""
    if not isinstance(cell, list):
        raise DataInvalid(f'{place}, column "{column}": {got(cell)}, expected a list of words')
    if not cell:
        raise DataInvalid(f'{place}, column "{column}": the list of words is empty; remove the row')
    for number, word in enumerate(cell, start=1):
        # A word of blanks alone is in some public data sets. It has no token, which is reported later.
        fault = None if isinstance(word, str) and not word.strip() else fault_of_text(word)
        if fault is not None:
            raise DataInvalid(f'{place}, column "{column}", word {number}: {fault}')
    return tuple(cell)


def _tags(cell: object, words: tuple[str, ...], reader: LabelReader, place: str, column: str) -> list[int]:
    """Indices of the tags. Raises: DataInvalid."""
    if not isinstance(cell, list):
        raise DataInvalid(f'{place}, column "{column}": {got(cell)}, expected a list of tags')
    if len(cell) != len(words):
        raise DataInvalid(f"{place}: {len(words)} words, but {len(cell)} tags; give each word one tag")
    found = []
    for number, (tag, word) in enumerate(zip(cell, words, strict=True), start=1):
        try:
            found.append(reader.index_of(tag))
        except (UnknownLabel, TypeError) as error:  # TypeError: a list cannot be looked up
            expectation = str(error) if isinstance(error, UnknownLabel) else "expected the name or number of a tag"
            raise DataInvalid(
                f"{place}, word {number} ({word[:40]}): {got(tag)}, {expectation}; correct the tag or spec.task.labels"
            ) from error
    return found
