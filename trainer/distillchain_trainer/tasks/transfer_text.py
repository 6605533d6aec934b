"""Reads the unlabelled text of `task.transfer` from files, S3 or the hub. The same for all task types that have it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from distillchain_api.task import Task
from distillchain_api.transfer import SequenceTask, Transfer
from distillchain_trainer.data.columns import NoColumn
from distillchain_trainer.data.split import Split, TaskData, joined
from distillchain_trainer.data.split_writer import SplitWriter
from distillchain_trainer.data.tables import Table, read_lines, read_table
from distillchain_trainer.data.unlabelled import Sieve, counts_sentence
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.models import hub
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.sources import hub_table, locate

log = logging.getLogger(__name__)

FIELD = "spec.task.transfer"
NAME = "transfer"


def with_transfer(
    data: TaskData,
    task: Task,
    *,
    endpoint_url: str | None,
    region: str | None,
    folder: Path,
    warnings: StageWarnings,
) -> TaskData:
    """The data with the unlabelled text of the task, if it has any. Files of S3 are downloaded into `folder`.

    Warns if there are fewer texts than `rows` asks for.

    Raises: DataInvalid naming field, file, line and column; also if no text can be used.
    """
    if not isinstance(task, SequenceTask) or task.transfer is None:
        return data
    transfer, columns = task.transfer, task.transfer.text or task.dataset.text
    # Validation and test first: that a text is in one of them is what a user should know, even if train has it too.
    held = [data.validation, *([data.test] if data.test else []), data.train]
    sieve = Sieve({split.name: split.fingerprints for split in held}, limit=transfer.rows)
    parts: list[Split] = []
    commits: set[str | None] = set()
    for table, commit in _tables(transfer, columns, endpoint_url, region, folder, warnings):
        commits.add(commit)
        writer = SplitWriter(folder / f"rows-{len(parts)}", NAME, place_prefix=table.place_prefix)
        try:
            for number, texts, fingerprint in sieve.usable(table, columns):
                writer.add(texts, number=number, fingerprint=fingerprint)
        except NoColumn as error:
            raise error.named_by(f"{FIELD}.text") from error
        parts.append(writer.close())
        if sieve.is_full:
            break
    found = replace(parts[0] if len(parts) == 1 else joined(NAME, parts), left_out=sieve.left_out)
    # All splits of the hub are read from one commit.
    found = replace(found, revision=next(iter(commits), None))
    _check(found, transfer, warnings)
    log.info("unlabelled text read", extra={"rows": len(found), "left_out": found.left_out})
    return replace(data, transfer=found)


def _check(found: Split, transfer: Transfer, warnings: StageWarnings) -> None:
    left_out = counts_sentence(found.left_out)
    if not len(found):
        raise DataInvalid(
            f"{FIELD}.files: no text of {transfer.uri} can be used ({left_out or 'the files are empty'}); name files "
            "with other texts than those of spec.task.dataset"
        )
    if transfer.rows and len(found) < transfer.rows:
        warnings.add(
            f"{FIELD}.rows: got {transfer.rows}, but only {len(found)} of the texts of {transfer.uri} can be used "
            f"(left out: {left_out or 'none'})"
        )


def _tables(
    transfer: Transfer,
    columns: list[str],
    endpoint_url: str | None,
    region: str | None,
    folder: Path,
    warnings: StageWarnings,
) -> Iterator[tuple[Table, str | None]]:
    """The files or splits one after the other, each fetched when it is needed; of the hub with their commit."""
    uri = transfer.uri
    for index, name in enumerate(transfer.files):
        if transfer.uri.startswith("hf://"):
            tables, commit = hub.fetch_dataset(
                uri, transfer.config, {str(index): name}, folder=folder, field=FIELD, names_field="files[{}]"
            )
            # The next split is read from the same commit, also if the branch moves meanwhile.
            uri = f"hf://{hub.split_name(uri)[0]}@{commit}"
            yield hub_table(tables[str(index)], columns, f"{transfer.uri}, split {name}"), commit
            continue
        where, shown = f"{FIELD}.files[{index}]", f"{transfer.uri}/{name}"
        path = locate(transfer.uri, name, where, endpoint_url, region, folder / str(index), field=FIELD)
        is_plain = name in transfer.plain_files
        table = read_lines(path, name=shown) if is_plain else read_table(path, columns, name=shown, warnings=warnings)
        yield table, None
