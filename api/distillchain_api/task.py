"""What all task types share: where the rows are, how long a text may be, and which metric decides.

A task type is one module of `distillchain_api.tasks` with a subclass of Task; `distillchain_api.tasks` finds it there.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected
from distillchain_api.metrics import Metric
from distillchain_api.objectives import Objective
from distillchain_api.values import SourceUri, Text, TextColumns, is_plain_path

CONFIG_RULE = cel(
    "!has(self.config) || self.uri.startsWith('hf://')",
    "config belongs to hf:// datasets; remove it",
    fieldPath=".config",
)
"""CEL rule of every data set; a subclass with rules of its own repeats it."""


UNKNOWN_FILE = "unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet"


class Splits(Document):
    """Where the rows of each split are: a split's name on the hub, else a file below `uri`."""

    train: Text
    """Rows the students learn from."""
    validation: Text
    """Rows for measuring every teacher and student; gates use them."""
    test: Text | None = None
    """Rows for measuring each model once, at the end. They decide nothing. Optional."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        named: dict[str, str] = {}
        for role in ("train", "validation", "test"):
            name = getattr(self, role)
            if name is None:
                continue
            if name in named:
                raise fault(role, expected(name, f"another one than splits.{named[name]}", "a split must be held out"))
            named[name] = role
        return self

    model_config = {
        "json_schema_extra": rules(
            cel(
                "self.train != self.validation && (!has(self.test) || (self.test != self.train "
                "&& self.test != self.validation))",
                "splits: expected different files or splits for train, validation and test",
            )
        )
    }


class Dataset(Document):
    """Where the rows are. A task type adds the columns that it reads, in a subclass."""

    uri: SourceUri
    """hf://name[@revision], or the s3:// or file:// folder that holds the files of `splits`."""
    config: Text | None = None
    """Configuration of a hub dataset, such as sst2 of hf://nyu-mll/glue; only with hf://."""
    splits: Splits
    """Names of splits (hf://) or of files: csv, tsv, jsonl (also as .gz) and parquet; for TokenClassification jsonl,
    parquet and CoNLL."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.config and not self.uri.startswith("hf://"):
            raise fault("config", expected(self.config, "nothing with files", "remove it, or use an hf:// dataset"))
        # A split of a hub data set is a name, not a path.
        if not self.uri.startswith("hf://"):
            self._check_files()
        return self

    def _check_files(self) -> None:
        for role, name in self.splits.to_document().items():
            if not is_plain_path(name):
                raise fault(
                    f"splits.{role}", expected(name, "the path of a file below uri", "without '//', './' and '../'")
                )

    model_config = {"json_schema_extra": rules(CONFIG_RULE)}


class TextDataset(Dataset):
    """Rows with one or two text columns and a label column."""

    text: TextColumns
    """Column of the text, or two columns for sentence pairs."""
    label: Text
    """Column of the label; the task type says what it holds."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if len(set(self.text)) != len(self.text):
            raise fault("text", expected(self.text, "two different columns"))
        if self.label in self.text:
            raise fault("label", expected(self.label, "a column that is not also in text"))
        return self

    model_config = {
        "json_schema_extra": rules(
            CONFIG_RULE,
            cel(
                "self.text.size() < 2 || self.text[0] != self.text[1]",
                "text: expected two different columns",
                fieldPath=".text",
            ),
            cel("!(self.label in self.text)", "label: expected a column that is not in text", fieldPath=".label"),
        )
    }


class Task(Document):
    """What every model of the chain must be able to do, and how well it does it."""

    metrics: ClassVar[tuple[Metric, ...]]
    """All metrics that are measured; the first is the default of `metric`."""
    outputs: ClassVar[Literal["Classes", "Labels", "Numbers", "Tokens"]] = "Classes"
    """What a model's outputs are, which decides the objectives that can compare them: one class out of several, labels
    that do not exclude each other, numbers, or the next token."""
    default_objective: ClassVar[Objective] = "SoftTargets"
    """The objective of a chain that states none."""

    output_fields: ClassVar[tuple[str, ...]] = ()
    """Fields besides `max_length` that decide what is stored of a teacher's output for a text."""

    type: str
    """Overridden by each task type with a Literal of its own name."""
    dataset: Dataset
    """Overridden by each task type with the columns that it reads."""
    metric: str
    """Overridden by each task type with a Literal of its metrics' names."""
    max_length: Annotated[int, Field(ge=4, le=8192), Expect("a number of tokens from 4 to 8192")] = 128
    """Tokens that a text is truncated to."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that a model's outputs stand for, in their order; empty for other outputs."""
        return []

    @property
    def deciding_metric(self) -> Metric:
        """The metric that gates and the result are measured in."""
        return next(metric for metric in self.metrics if metric.name == self.metric)
