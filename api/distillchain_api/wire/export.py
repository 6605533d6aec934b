"""The record of an export: written after its files, and valid only for the weights that it names."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distillchain_api.base import MAX_INT64, Record
from distillchain_api.resource.export import Format
from distillchain_api.wire.manifest import FileEntry, SplitMetrics
from distillchain_api.wire.work_order import Digest


class MeasuredFormat(Record):
    """A model in one format, measured on rows of validation on a CPU."""

    format: Literal["pytorch"] | Format
    path: str | None = None
    """Its file in the folder of the export; None for pytorch, which is the checkpoint."""
    size_bytes: int
    """Bytes of its weights."""
    validation: SplitMetrics
    examples_per_second: float
    """Forward passes of whole texts."""
    different_predictions: Annotated[int, Field(ge=0)] = 0
    """Rows or items of validation with another prediction than that of pytorch."""
    largest_difference: float = 0.0
    """Of an output from that of pytorch."""


class ExportRecord(Record):
    """An export whose files are all stored."""

    contract: Literal[1] = 1
    digest: Digest
    """Of the stage."""
    weights: str
    """Revision of the student's weights that were exported."""
    attempt: str
    """Name of the folder in `stages/<digest>/exports`."""
    files: list[FileEntry]
    formats: list[MeasuredFormat]
    rows: Annotated[int, Field(ge=0)] | None = None
    """Rows of validation on which all formats were measured; None: all of them."""
    warnings: list[str] = Field(default_factory=list)
    environment: dict[str, str]
    created_at: str
    """RFC 3339, UTC."""


class ExportSummary(Record):
    """A format of an export, as far as tables and status show it."""

    format: Format
    uri: str
    """URI of the file."""
    size_bytes: Annotated[int, Field(ge=0, le=MAX_INT64)]
    metric: str
    """`task.metric` on validation; four decimals."""
    examples_per_second: str
    """Speed with whole texts on a CPU."""
    pytorch_examples_per_second: str
    """Speed of the checkpoint in PyTorch, on the same CPU."""
