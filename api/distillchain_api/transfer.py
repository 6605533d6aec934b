"""`task.transfer`: unlabelled text that the teacher answers for, mixed into the rows that a student learns from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, Fault, error_of, expected
from distillchain_api.task import CONFIG_RULE, Task, TextDataset
from distillchain_api.values import PlainText, SourceUri, Text, TextColumns, is_plain_path

MAX_FILES = 256
PLAIN_TEXT = (".txt", ".txt.gz")


class Transfer(Document):
    """Unlabelled text. Students learn from the teacher's answers for it, at full weight whatever `alpha` is, because a
    text without a label has no other signal. Texts that are empty, repeated, or in train, validation or test are left
    out; case and white space make no difference. Stage zero and stages with `alpha: 0` ask no teacher and ignore it."""

    uri: SourceUri
    """hf://name[@revision], or the s3:// or file:// folder that holds `files`."""
    config: Text | None = None
    """Configuration of a hub dataset; only with hf://."""
    files: Annotated[
        list[PlainText],
        Field(min_length=1, max_length=MAX_FILES, json_schema_extra={"x-kubernetes-list-type": "set"}),
        Expect(f"a list of 1 to {MAX_FILES} files or splits"),
    ]
    """Files below `uri`, read in this order: csv, tsv, jsonl or txt (also as .gz), or parquet; with hf:// names of
    splits. A .txt file has one text on each line."""
    text: TextColumns | None = None
    """Column of the text, or two columns for sentence pairs; empty: the columns of `dataset.text`."""
    rows: Annotated[int, Field(ge=1, le=1_000_000_000), Expect("a whole number from 1 to 1000000000")] | None = None
    """How many texts are used: the first ones that are not left out; empty: all."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if faults := list(self._faults()):
            raise error_of(faults)
        return self

    def _faults(self) -> Iterator[Fault]:
        on_hub = self.uri.startswith("hf://")
        if self.config and not on_hub:
            yield Fault("config", expected(self.config, "nothing with files", "remove it, or use an hf:// dataset"))
        for index, name in enumerate(self.files):
            if name in self.files[:index]:
                yield Fault(f"files[{index}]", expected(name, "every file once"))
            elif not on_hub and not is_plain_path(name):
                yield Fault(
                    f"files[{index}]", expected(name, "the path of a file below uri", "without '//', './' and '../'")
                )
        if self.text and len(set(self.text)) != len(self.text):
            yield Fault("text", expected(self.text, "two different columns"))

    model_config = {
        "json_schema_extra": rules(
            CONFIG_RULE,
            cel(
                "!has(self.text) || self.text.size() < 2 || self.text[0] != self.text[1]",
                "text: expected two different columns",
                fieldPath=".text",
            ),
        )
    }

    @property
    def plain_files(self) -> list[str]:
        """Files without columns."""
        return [] if self.uri.startswith("hf://") else [n for n in self.files if n.lower().endswith(PLAIN_TEXT)]


class SequenceTask(Task):
    """A task with one output for each text or pair of texts, whose students may also learn from unlabelled text."""

    dataset: TextDataset
    transfer: Transfer | None = None
    """Unlabelled text that the teacher answers for, mixed into the training rows."""

    @model_validator(mode="after")
    def _transfer_has_the_same_columns(self) -> Self:
        if self.transfer is None:
            return self
        columns = len(self.dataset.text)
        if self.transfer.text is not None and len(self.transfer.text) != columns:
            raise fault("transfer.text", expected(self.transfer.text, f"{columns} as in dataset.text"))
        if columns > 1 and (plain := self.transfer.plain_files):
            index = self.transfer.files.index(plain[0])
            raise fault(
                f"transfer.files[{index}]",
                expected(plain[0], "a file with columns for sentence pairs", "a .txt file has one text on each line"),
            )
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "!has(self.transfer) || !has(self.transfer.text) "
                "|| self.transfer.text.size() == self.dataset.text.size()",
                "transfer.text: expected as many columns as in dataset.text",
                fieldPath=".transfer.text",
            )
        )
    }


def transfer_of(task: Task) -> Transfer | None:
    """The unlabelled text of a task; None for a task type that cannot learn from it."""
    return task.transfer if isinstance(task, SequenceTask) else None


def without_transfer(task: Task) -> Task:
    """The task of a stage that asks no teacher."""
    return task.model_copy(update={"transfer": None}) if isinstance(task, SequenceTask) else task
