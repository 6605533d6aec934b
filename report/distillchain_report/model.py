"""The report as data: `-o json` prints it, and the pages are made from it. Shares are from 0 to 1."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import SerializeAsAny

from distillchain_api.base import Document
from distillchain_api.failures import FailureClass
from distillchain_api.metrics import Metric
from distillchain_api.resource.status import StagePhase
from distillchain_api.wire.evidence import EvidenceDocument
from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_api.wire.records import HistoryPoint
from distillchain_report.statistics import share_interval

Outcome = Literal["Succeeded", "Failed", "Unfinished"]


class MetricFacts(Document):
    """A metric of the task."""

    name: str
    display_name: str
    higher_is_better: bool
    is_share: bool
    """From 0 to 1, so that a ratio of two values means something."""

    @classmethod
    def of(cls, metric: Metric) -> Self:
        """The facts of a metric of the contract."""
        return cls(
            name=metric.name,
            display_name=metric.display_name,
            higher_is_better=metric.higher_is_better,
            is_share=metric.is_share,
        )

    @property
    def has_retention(self) -> bool:
        """Whether a student can keep a share of its teacher's value; not of an error, which is better when lower."""
        return self.is_share and self.higher_is_better


class Estimate(Document):
    """A measured value with its 95 % interval, if the store holds what the interval is computed from."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of_share(cls, hits: int, rows: int) -> Self | None:
        """A share of so many rows with Wilson's interval; None: there are no rows."""
        if not rows:
            return None
        low, high = share_interval(hits, rows)
        return cls(value=hits / rows, low=low, high=high)


class Counts(Document):
    """On how many validation rows each of two models is right."""

    both_right: int
    only_teacher_right: int
    only_student_right: int
    both_wrong: int


class Comparison(Document):
    """A student and a teacher on the same validation rows."""

    difference: float
    """The student's metric minus the teacher's."""
    p_value: float
    """Two-sided paired permutation test of the metric that the chain names."""
    counts: Counts | None = None
    """None: the task type has no right and wrong rows."""


class ChanceLevel(Document):
    """The value of the metric that guessing reaches."""

    value: float
    guesser: str
    """Who guesses how, such as `always naming the most frequent class`."""


class ModelReport(Document):
    """The root teacher or a student."""

    name: str
    parameters: int
    size_bytes: int
    metric: Estimate
    """The metric that the chain names, on validation."""
    metrics: dict[str, Estimate]
    """All metrics of the task, on validation."""
    test: Estimate | None = None
    """The metric that the chain names, on test."""
    retention: Estimate | None = None
    """Its metric as a share of the root teacher's. None for the root teacher, and where a ratio means nothing."""
    compression: float
    """Parameters of the root teacher divided by its own."""
    examples_per_second: float | None = None
    latency_p50_ms: float | None = None
    """Milliseconds of one row at batch size 1 on the device of its stage, median."""
    latency_p95_ms: float | None = None
    """The same, 95th percentile."""
    pretrained: bool | None = None
    """False: started from new weights. None: the root teacher."""


class FurtherTeacherReport(Document):
    """A teacher of a stage beside the stage before."""

    name: str
    share: float
    """Its part of the mean of all teachers."""
    metric: float | None = None
    """The metric that the chain names, on validation."""


class PassRun(Document):
    """The Job that has measured and asked the teacher of a stage."""

    elapsed_s: float
    gpu_hours: float
    examples_per_second: float
    """Rows that it has answered for; 0: all answers were in the store."""


class Run(Document):
    """What a committed stage cost, and where its result came from."""

    chain: str
    """The chain that trained it."""
    attempt: str
    committed_at: str
    reused: bool
    """Trained by another chain, or already committed when this chain ran."""
    resumed: bool
    logits_reused: bool
    elapsed_s: float
    model_s: float
    gpu_hours: float
    """Wall hours on GPUs, times processes; 0 on a CPU. Without those of `teacher_pass`."""
    teacher_pass: PassRun | None = None
    """None: the stage has asked its teacher itself."""
    steps: int
    final_loss: float
    examples_per_second: float
    start: str
    pretrained: bool
    weights: str
    """Revision of the student: sha256 of its weights."""
    teacher: str | None
    """Source of the teacher."""
    teacher_revision: str | None
    further_teachers: list[FurtherTeacherReport] = []
    """With several teachers, the others."""
    data_revision: str
    recipe: dict[str, Any]
    trained_parameters: int | None = None
    """Of a LoRA adapter and the head; None: all parameters were trained."""
    selected: SelectedEpoch | None = None
    """The epoch that was chosen on validation; None: the weights of the last one."""
    environment: dict[str, str]
    checkpoint: str


class ExportReport(Document):
    """A committed model in one format, on validation and on a CPU. The first of a stage is the checkpoint itself."""

    format: str
    size_bytes: int
    metric: float
    """The metric that the chain names."""
    examples_per_second: float
    different_predictions: int
    """Rows or items with another prediction than that of PyTorch."""
    largest_difference: float
    """Of an output from that of PyTorch."""
    rows: int | None = None
    """Rows of validation on which it was measured; None: all of them."""
    uri: str
    """Of its file, or of the checkpoint."""


class StageReport(Document):
    """One step of the chain."""

    name: str
    digest: str
    teacher_name: str
    phase: StagePhase
    message: str | None = None
    failure_class: FailureClass | None = None
    warnings: list[str] = []
    """What its trainer warned of."""
    doubt: str | None = None
    """Why its student may not have learned the task, as its trainer found."""
    model: ModelReport | None = None
    """The committed student. Present for a failed stage too, if it is committed."""
    run: Run | None = None
    against_teacher: Comparison | None = None
    """Its student and its own teacher."""
    teacher_metric: float | None = None
    """Its own teacher, as this stage measured it."""
    history: list[HistoryPoint] = []
    exports: list[ExportReport] = []


class Totals(Document):
    """All committed stages together, with the passes of their teachers."""

    stages: int
    committed: int
    reused: int
    elapsed_s: float
    reused_share: float
    """Share of the wall time that did not have to be spent again."""
    gpu_hours: float
    pass_gpu_hours: float = 0.0
    """The part of `gpu_hours` that passes took."""


class SectionDetails(Document):
    """What a task type adds to the report about the last committed student."""

    @property
    def doubts(self) -> list[str]:
        """Why that student's result is doubtful, as predicates: `never predicts ...`."""
        return []


class Report(Document):
    """A chain as its store shows it."""

    report: Literal[1] = 1
    chain: str
    generated_at: str
    """RFC 3339, UTC."""
    distillchain: str
    """Version that made this report."""
    storage: str
    sources: str
    """sha256 over the manifests and the records of exports that it was made from."""
    outcome: Outcome
    doubts: list[str] = []
    """Why the result of the last committed student is doubtful, a sentence each."""
    verdict: str
    metric: MetricFacts
    """The metric that the chain names."""
    other_metrics: list[MetricFacts] = []
    """The other metrics that were measured."""
    task: dict[str, Any] | None = None
    """From the recipe; None while nothing is committed."""
    rows: dict[str, int] = {}
    """Of each split."""
    chance: ChanceLevel | None = None
    """On validation."""
    root: ModelReport | None = None
    stages: list[StageReport]
    against_root: Comparison | None = None
    """The last committed student and the root teacher."""
    details: SerializeAsAny[SectionDetails] | None = None
    """What the section of the task type adds."""
    totals: Totals
    evidence: EvidenceDocument | None = None
    """The chain beside its controls; None: it has none, or there is no verdict yet."""
    missing: list[str] = []
    """What the report lacks and why, a sentence each."""

    @property
    def last(self) -> StageReport | None:
        """The last committed stage."""
        return next((stage for stage in reversed(self.stages) if stage.model), None)

    @property
    def models(self) -> list[ModelReport]:
        """The root teacher, then the committed students from large to small."""
        # Where stage zero fine-tunes the root teacher, both are the same object (build.py).
        students = [stage.model for stage in self.stages if stage.model and stage.model is not self.root]
        return ([self.root] if self.root else []) + students

    @property
    def warnings(self) -> list[tuple[list[str], str]]:
        """Every warning once, with the names of the stages that have it."""
        found: dict[str, list[str]] = {}
        for stage in self.stages:
            for warning in stage.warnings:
                found.setdefault(warning, []).append(stage.name)
        return [(names, warning) for warning, names in found.items()]
