"""The status of a chain, derived from what was observed. Metrics are strings, as Kubernetes APIs write decimals."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distillchain_api.base import Record
from distillchain_api.failures import FailureClass

ChainPhase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"]
StagePhase = Literal["Pending", "Running", "Suspended", "Committed", "Failed"]
ConditionType = Literal["Ready", "Reconciling", "Stalled", "Succeeded", "Suspended", "ExportsReady"]


class Condition(Record):
    """A condition of the Kubernetes API conventions; kstatus, `kubectl wait`, Argo CD and Flux read it."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    observed_generation: Annotated[int, Field(ge=0)]
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


MetricStrings = dict[str, str]
"""Metrics of one split by name, such as `accuracy: "0.8991"`; four decimals."""


class MeasuredMetrics(Record):
    """What was measured, split by split."""

    validation: MetricStrings
    test: MetricStrings | None = None


class StageProgress(Record):
    """The last progress line of the running pod."""

    phase: str
    step: int
    of: int
    loss: str | None = None
    examples_per_second: str | None = None
    eta_seconds: int | None = None


class MeasuredStatus(Record):
    """A model in short."""

    metrics: MeasuredMetrics
    parameters: int
    size_bytes: int
    examples_per_second: str | None = None


class ExportStatus(Record):
    """A committed student in another format."""

    format: str
    uri: str
    """Of its file."""
    size_bytes: int
    metric: str
    """`task.metric` on validation."""
    examples_per_second: str
    """Of whole texts on a CPU."""
    pytorch_examples_per_second: str
    """The same of the checkpoint in PyTorch, on the same CPU."""


class MissingExport(Record):
    """An export of a committed stage that is not made yet, or could not be made."""

    export: str
    """onnx or onnx-int8."""
    phase: Literal["Pending", "Running", "Failed"]
    job: str | None = None
    """Name of the Job that makes it, or has tried to."""
    message: str | None = None
    """What it waits for, or why it failed."""
    failure_class: FailureClass | None = None
    """Row of docs/failures.md."""
    pauses: int | None = None
    """How often in a row its Job was deleted for a pause: a pod waited longer than `pendingDeadline`, or its pods ended
    too often."""
    next_start_at: str | None = None
    """When its Job is created again after such a pause."""


class StageStatus(Record):
    """One stage."""

    name: str
    phase: StagePhase
    digest: str
    """Identity of the stage in the store."""
    job: str | None = None
    """Name of its Job."""
    attempt: int = 0
    """Pods of the present Job that were started."""
    checkpoint: str | None = None
    """URI of the committed checkpoint."""
    reused: bool | None = None
    """Found committed, not trained here."""
    pretrained: bool | None = None
    """False: started from new weights."""
    model: MeasuredStatus | None = None
    """The committed student."""
    teacher: MeasuredStatus | None = None
    """Its teacher as this stage measured it."""
    started_at: str | None = None
    finished_at: str | None = None
    elapsed_seconds: str | None = None
    """Wall time of the stage as its trainer measured it."""
    examples_per_second: str | None = None
    """Examples trained per second."""
    progress: StageProgress | None = None
    message: str | None = None
    """What it waits for, why it failed, or why its student may not have learned the task."""
    exports: list[ExportStatus] = []
    """What was exported from the committed weights."""
    missing_export: MissingExport | None = None
    """What `export` asks for and `exports` lacks. The stage stays committed whatever becomes of it."""
    warnings: list[str] = []
    """What the user should know of a committed stage's data, checkpoints and result."""
    failure_class: FailureClass | None = None
    """Row of docs/failures.md."""
    missed_starts: int | None = None
    """How often a pod has waited longer than `pendingDeadline` since all pods ran together last."""
    restart_pauses: int | None = None
    """How often in a row its Job was deleted for a pause because its pods were evicted, interrupted or refused by
    nodes. A Job that has existed for an hour ends the row."""
    next_start_at: str | None = None
    """When its Job is created again after such a pause."""


class ChainResult(Record):
    """What the chain was for."""

    checkpoint: str
    metric: str
    """Of `task.metric` on validation."""
    test_metric: str | None = None
    parameters: int
    retention: str | None = None
    """Metric of the last student as a share of the root teacher's, both on validation; empty if not a share."""
    compression: str
    """Parameters of the root teacher over those of the last student."""


class ChainStatus(Record):
    """What is known of a chain."""

    observed_generation: Annotated[int, Field(ge=-1)] = 0
    """Generation of the spec this status is of; -1: none yet."""
    phase: ChainPhase = "Pending"
    stage: str = ""
    """Committed stages of all, such as 1/3."""
    metric: str | None = None
    """`task.metric` of the last committed student on validation."""
    message: str | None = None
    """In one sentence: what it does, waits for, or failed of."""
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    stages: Annotated[
        list[StageStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    result: ChainResult | None = None

    def stage_named(self, name: str) -> StageStatus | None:
        """The entry of one stage."""
        return next((stage for stage in self.stages if stage.name == name), None)
