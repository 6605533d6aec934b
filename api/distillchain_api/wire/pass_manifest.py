"""The manifest of a teacher's pass: its commit, with all that a stage must know of a teacher that it never loads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distillchain_api.base import Record
from distillchain_api.wire.manifest import FileEntry, ModelFacts, SplitFacts
from distillchain_api.wire.work_order import Digest

OUTPUTS_FILE = "outputs-{split}.safetensors"
"""The teacher's measured outputs on a split, in the order of the task."""


class PassManifest(Record):
    """A committed pass: the outputs of its teacher for all rows are in the store."""

    contract: Literal[1] = 1
    digest: Digest
    """Of the pass (digests.pass_digest)."""
    chain: str
    stage: str
    attempt: str
    files: list[FileEntry]
    """Configuration and tokenizer of the teacher, and its outputs on validation and test."""
    teacher: ModelFacts
    teacher_files: Digest
    """sha256 over the files of the teacher: outputs in the store are keyed by it."""
    license: str = ""
    """Of the teacher, as its model card states it."""
    columns: list[int] | None = None
    """The teacher's outputs in the order of the task; empty: they are in order."""
    data: dict[str, SplitFacts]
    rows: int
    """Training rows and unlabelled texts that it has answered for."""
    logits: Digest
    """Folder of its outputs in the store."""
    elapsed_s: float
    """Wall seconds of the attempt that committed."""
    examples_per_second: float
    """Rows that were computed, per second; 0: their outputs were in the store already."""
    processes: int = 1
    warnings: list[str] = Field(default_factory=list)
    environment: dict[str, str]
    committed_at: str
    """RFC 3339, UTC."""

    @property
    def has_reused_outputs(self) -> bool:
        """Whether it has computed none of the outputs, because they were in the store already."""
        return self.examples_per_second == 0
