"""The manifest: the commit of a stage. Written last and conditionally; only what it lists is whole."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from distillchain_api import CONTRACT_VERSION
from distillchain_api.base import MAX_INT64, Record
from distillchain_api.faults import BadDocument, Fault
from distillchain_api.layout import CHECKPOINT_FOLDER, RESULTS_FOLDER, attempt_prefix, checkpoint_prefix
from distillchain_api.wire.work_order import Digest

SplitMetrics = Annotated[dict[str, float], Field(min_length=1)]
"""Every metric of the task type by its name (`accuracy`, `macroF1`, ...)."""


class Metrics(Record):
    """What was measured, split by split."""

    validation: SplitMetrics
    test: SplitMetrics | None = None


def _inside(path: str) -> str:
    """Refuses a path out of its folder: whoever writes a store must not decide where a reader writes files."""
    if "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("a path within the folder, such as model.safetensors")
    return path


class FileEntry(Record):
    """One file of a folder in the store."""

    path: Annotated[str, AfterValidator(_inside)]
    """Relative to the folder of the attempt, with slashes; never out of it."""
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class ModelSummary(Record):
    """A measured model, as far as tables and status show it."""

    parameters: Annotated[int, Field(ge=1, le=MAX_INT64)]
    """Number of parameters, shared ones counted once."""
    size_bytes: Annotated[int, Field(ge=0, le=MAX_INT64)]
    """Bytes of its weight files."""
    metrics: Metrics
    examples_per_second: float | None = None
    """Forward passes of whole texts, measured on validation."""
    latency_p50_ms: float | None = None
    """Milliseconds of a forward pass of one row, median over a sample of validation."""
    latency_p95_ms: float | None = None
    """The same, 95th percentile."""
    doubt: str | None = None
    """Why it may not have learned the task; None: on validation it beats chance."""


class ModelFacts(ModelSummary):
    """A model as it was measured in this stage, and where it comes from."""

    source: str
    """URI of the checkpoint, or `architecture:<model type>`."""
    revision: str
    """Resolved revision: a commit of the hub, else the sha256 of the weights."""
    digest: Digest | None = None
    """Stage digest, when it is a committed stage."""

    def summary(self) -> ModelSummary:
        """Without its origin."""
        return ModelSummary.model_validate({name: getattr(self, name) for name in ModelSummary.model_fields})


class SplitFacts(Record):
    """The rows of one split as they were read."""

    rows: int
    sha256: Digest
    """Over the texts and labels in order."""
    left_out: dict[str, int] | None = None
    """Of `transfer`: texts that were read and not used, by reason (empty, repeated, or the split that has them)."""
    revision: str | None = None
    """Of `transfer` from the hub: its commit. That of the other splits is `dataRevision`."""


class FurtherTeacher(Record):
    """A teacher beside the stage before."""

    name: str
    """Name of the stage, `teacher` for the root, or the URI of a model that is not part of the chain."""
    share: float
    """Its share of the mean of all teachers."""
    facts: ModelFacts


class SelectedEpoch(Record):
    """The epoch whose weights are committed, of a training with `selection: Best`."""

    epoch: Annotated[int, Field(ge=1)]
    """Counted from 1. The last one trained if the metric was not a number after any epoch."""
    step: Annotated[int, Field(ge=1)]
    """Optimizer steps up to its end."""
    trained_epochs: Annotated[int, Field(ge=1)]
    """Epochs trained; fewer than `training.epochs` if `training.patience` ended the training."""


class RunFacts(Record):
    """How the training went."""

    started_at: str
    """RFC 3339, UTC."""
    elapsed_s: float
    """Wall seconds of this stage in all attempts that saved their time, from pull to commit."""
    model_s: float
    """Seconds in forward and backward passes: teacher measured, its logits, training, evaluation."""
    examples_per_second: float
    """Examples trained per second."""
    steps: int
    final_loss: float
    """Mean over the last 50 steps, or over all if there were fewer."""
    logits_reused: bool
    """The teacher's logits were found in the store, and neither this stage nor its pass has computed them."""
    logits: list[Digest] | None = None
    """Folders in `logits/` of the outputs that it learned from, of each teacher; None: not known."""
    resumed: bool
    """Continued from an earlier attempt's state."""
    micro_batch_size: int | None = None
    """Rows of one forward pass in training; smaller than asked for where GPU memory was short."""
    processes: int = 1
    """Processes that trained together, each on a GPU of its own if there are GPUs."""
    mode: str | None = None
    """How training steps were executed: eager, captured, compiled or compiled+captured; see docs/gpus.md."""
    trained_parameters: int | None = None
    """With `student.lora`, parameters of the adapter and the head; None: all parameters were trained."""
    selected: SelectedEpoch | None = None
    """None: the weights of the last epoch, whatever it reached on validation."""
    teacher_pass: Digest | None = None
    """The pass that has measured and asked the teacher; None: this stage did, or it has none."""


class Manifest(Record):
    """A committed stage."""

    contract: Literal[2] = 2
    digest: Digest
    chain: str
    stage: str
    attempt: str
    checkpoint: str
    """URI of the folder that holds the model and nothing else."""
    files: list[FileEntry]
    teacher: ModelFacts | None = None
    """The stage before, or the root teacher."""
    further_teachers: list[FurtherTeacher] = Field(default_factory=list)
    """With `stages[].teachers`, the others."""
    student: ModelFacts
    pretrained: bool
    """False: the student started from new weights."""
    start: str
    """Where the student started: URI and revision, or the architecture."""
    licenses: dict[str, str] = Field(default_factory=dict)
    """Of `teacher` and `start`, as their model cards state them; one that is missing here is unknown."""
    data_revision: str
    data: dict[str, SplitFacts]
    recipe: dict[str, Any]
    """Task, student, training and distillation of the work order."""
    run: RunFacts
    warnings: list[str] = Field(default_factory=list)
    """What the user should know of data, checkpoints and result, a sentence each."""
    environment: dict[str, str]
    """Versions and device."""
    committed_at: str
    """RFC 3339, UTC."""

    @property
    def has_folders(self) -> bool:
        """Whether checkpoint and results are in folders of their own; older releases kept them in one."""
        return any(entry.path.startswith(f"{CHECKPOINT_FOLDER}/") for entry in self.files)

    @property
    def checkpoint_prefix(self) -> str:
        """The key of the folder that `checkpoint` names, without a slash at the end."""
        prefix = checkpoint_prefix if self.has_folders else attempt_prefix
        return prefix(self.digest, self.attempt)

    @property
    def checkpoint_files(self) -> list[FileEntry]:
        """Those of `files` that are in the folder of the checkpoint."""
        return [entry for entry in self.files if not self.has_folders or entry.path.startswith(f"{CHECKPOINT_FOLDER}/")]

    def result_path(self, name: str) -> str:
        """The path of a file of distillchain_api.wire.records, as `files` lists it."""
        return f"{RESULTS_FOLDER}/{name}" if self.has_folders else name


class OtherContract(BadDocument):
    """The manifest has another contract: it is not damaged, but this release cannot read it."""


def parse_manifest(content: bytes) -> Manifest:
    """A manifest from the store. Raises: OtherContract; BadDocument when it is none."""
    try:
        return Manifest.parse(content)
    except BadDocument as error:
        # Of another contract, other fields may be missing or wrong too: naming them would call a good manifest damaged.
        contract = _contract_of(content)
        if contract in (None, CONTRACT_VERSION):
            raise
        fault = Fault("", f"its contract is {contract}, this release reads {CONTRACT_VERSION}")
        raise OtherContract(error.source, [fault]) from error


def _contract_of(content: bytes) -> int | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    contract = document.get("contract") if isinstance(document, dict) else None
    return contract if isinstance(contract, int) else None
