"""The status of a chain, derived from what was observed. Metrics are strings, as Kubernetes APIs write decimals."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from distillchain_api.base import Record
from distillchain_api.failures import FailureClass
from distillchain_api.resource.evidence import Control, Outcome

ChainPhase = Literal["Pending", "Running", "Suspended", "Succeeded", "Failed"]
StagePhase = Literal["Pending", "Running", "Suspended", "Committed", "Failed"]
Admission = Literal["WaitingForTurn", "WaitingForPeer", "WaitingForQuota", "Admitted", "Requeued"]
ConditionType = Literal["Ready", "Reconciling", "Stalled", "Succeeded", "Suspended", "ExportsReady", "EvidenceReady"]


def _with_time_zone(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected a time zone")
    return text


Moment = Annotated[str, AfterValidator(_with_time_zone), Field(json_schema_extra={"format": "date-time"})]
"""RFC 3339. The operator counts from it, so a text that is no time must not be read from a status edited by hand."""


class Condition(Record):
    """A condition of the Kubernetes API conventions; kstatus, `kubectl wait`, Argo CD and Flux read it."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    observed_generation: Annotated[int, Field(ge=0)]
    last_transition_time: Moment


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
    changed_at: Moment | None = None
    """When the operator first saw this step."""


class MeasuredStatus(Record):
    """A model in short."""

    metrics: MeasuredMetrics
    parameters: int
    size_bytes: int
    examples_per_second: str | None = None


class SelectedEpochStatus(Record):
    """The epoch whose weights are committed, with `selection: Best`."""

    epoch: int
    """Counted from 1."""
    trained_epochs: int
    """Fewer than `training.epochs` if `training.patience` ended the training."""


class FurtherTeacherStatus(Record):
    """One of several teachers of a stage, beside the stage before."""

    name: str
    """Name of the stage, `teacher` for the root, or the URI of a model that is not part of the chain."""
    share: str
    """Its share of the mean of all teachers."""
    metric: str
    """`task.metric` on validation."""


class ExportStatus(Record):
    """A committed student in another format."""

    format: str
    uri: str
    """URI of the file."""
    size_bytes: int
    metric: str
    """`task.metric` on validation."""
    examples_per_second: str
    """Speed with whole texts on a CPU."""
    pytorch_examples_per_second: str
    """Speed of the checkpoint in PyTorch, on the same CPU."""


class MissingExport(Record):
    """An export of a committed stage that is not made yet, or could not be made."""

    export: str
    """onnx or onnx-int8."""
    phase: Literal["Pending", "Running", "Failed"]
    job: str | None = None
    """Name of its Job."""
    message: str | None = None
    """What it waits for, or why it failed."""
    failure_class: FailureClass | None = None
    """Failure class (docs/failures.md)."""
    pauses: int | None = None
    """Pauses in a row, because a pod waited longer than `pendingDeadline`, or its pods ended too often."""
    next_start_at: Moment | None = None
    """When its Job is created again after such a pause."""


class ControlResult(Record):
    """The chain's student against one control."""

    control: Control
    metric: str
    """Mean over its seeds, on validation."""
    difference: str
    """The chain's mean minus this one."""
    low: str
    """Lower end of the interval of the difference, for other rows and seeds. All intervals together cover with 95 %."""
    high: str
    """Upper end of the interval."""
    p_value: str
    """Two-sided; multiplied by the number of controls."""
    detectable: str
    """The smallest difference that these rows and seeds would have found with a probability of 80 %."""


class OtherStageResult(Record):
    """An earlier stage against its controls, with `evidence.stages: Every`."""

    stage: str
    outcome: Outcome
    control: Control
    """The control that decided."""
    sentence: str


class EvidenceResult(Record):
    """Whether the steps in between paid."""

    outcome: Outcome
    """WorthIt, NotWorthIt or Undecided."""
    sentence: str
    """The result in one sentence."""
    stage: str
    """The stage that was compared."""
    control: Control
    """The control that decided; for WorthIt the strongest."""
    metric: str
    """Mean of the stage's students over the seeds, on validation."""
    controls: list[ControlResult]
    seeds: int
    """Students of the recipe that has the fewest."""
    rows: int
    """Rows of validation."""
    smallest_gain: str
    """The gain that makes the steps in between worth their cost."""
    seeds_to_decide: int | None = None
    """Seeds that would probably decide; empty: decided, or not within reach."""
    rows_to_decide: int | None = None
    """Validation rows that would probably decide, with the same seeds."""
    other_stages: list[OtherStageResult] = []
    """Results for earlier stages, as many as fit into the trainer's answer."""
    missing: list[str] = []
    """What the comparison leaves out and why, one sentence each."""
    uri: str
    """The whole comparison in the store, JSON."""


class StageStatus(Record):
    """One stage."""

    name: str
    phase: StagePhase
    digest: str
    """Identity of the stage in the store."""
    job: str | None = None
    """Name of its Job."""
    attempt: int = 0
    """Number of pods of the current Job that were started."""
    pod_uid: str | None = None
    """First eight characters of the UID of its newest pod; on several nodes, of node 0. The trainer's attempts in
    the store are named after it."""
    admission: Admission | None = None
    """WaitingForTurn: as many chains run in the namespace as `maxRunningChains` of the operator allows. WaitingForPeer:
    another chain of the namespace runs the same stage. Of a Job in a queue of Kueue: WaitingForQuota before its first
    pod, Admitted, or Requeued after Kueue has stopped it, for example for a Job of higher priority."""
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
    further_teachers: list[FurtherTeacherStatus] = []
    """With `teachers`: all teachers except the stage before."""
    selected_epoch: SelectedEpochStatus | None = None
    """With `selection: Best`: the epoch that is committed."""
    started_at: Moment | None = None
    finished_at: Moment | None = None
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
    """An export that is not made yet, or has failed. The stage stays committed in any case."""
    warnings: list[str] = []
    """Warnings about a committed stage's data, checkpoints and result."""
    failure_class: FailureClass | None = None
    """Failure class (docs/failures.md)."""
    missed_starts: int | None = None
    """How often a pod has waited longer than `pendingDeadline` since all pods last ran together."""
    restart_pauses: int | None = None
    """Pauses in a row, because its pods were evicted, interrupted or refused by nodes. Counted from zero again once
    a Job has existed for an hour."""
    stalls: int | None = None
    """How often its Job was deleted because its trainer made no progress within `progressDeadline`."""
    next_start_at: Moment | None = None
    """When its Job is created again after such a pause."""
    verdict: EvidenceResult | None = None
    """Only of the entry `evidence`: the result of the comparison."""


class ChainResult(Record):
    """The last student of a chain that has succeeded."""

    checkpoint: str
    metric: str
    """`task.metric` on validation."""
    test_metric: str | None = None
    parameters: int
    retention: str | None = None
    """Metric of the last student as a share of the root teacher's, both on validation; empty if not a share."""
    compression: str
    """Parameters of the root teacher divided by the parameters of the last student."""
    evidence: EvidenceResult | None = None
    """With `spec.evidence`: whether the steps in between paid. Empty until the condition EvidenceReady is True, or has
    the reason Failed."""


class ChainStatus(Record):
    """What is known of a chain."""

    observed_generation: Annotated[int, Field(ge=-1)] = 0
    """Generation of the spec that this status describes; -1: none yet."""
    phase: ChainPhase = "Pending"
    stage: str = ""
    """Number of committed stages and of all stages, such as 1/3."""
    metric: str | None = None
    """`task.metric` of the last committed student on validation."""
    message: str | None = None
    """What the chain does, what it waits for, or why it failed, in one sentence."""
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []
    stages: Annotated[
        list[StageStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    evidence: Annotated[
        list[StageStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
    ] = []
    """With `spec.evidence`: controls, further seeds and the verdict. They do not decide `phase`."""
    result: ChainResult | None = None
    started_at: Moment | None = None
    """Since when it runs without a break: `timeout` counts from here."""
    handled_retry: str | None = None
    """The last request to try stages again, as the annotation `distillchain.io/retry` had it."""

    @property
    def entries(self) -> list[StageStatus]:
        """Of the stages and of the evidence."""
        return [*self.stages, *self.evidence]

    def stage_named(self, name: str) -> StageStatus | None:
        """The entry of one stage, or of a vertex of the evidence."""
        return next((entry for entry in self.entries if entry.name == name), None)
