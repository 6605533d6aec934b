"""The report as data: what `-o json` prints and what the pages are made from. Shares are from 0 to 1."""

from __future__ import annotations

from typing import Any, Literal

from distillchain_api.base import Document
from distillchain_api.failures import FailureClass
from distillchain_api.wire.records import HistoryPoint

Outcome = Literal["Succeeded", "Failed", "Unfinished"]
StandingOf = Literal["Committed", "Failed", "Running", "Suspended", "Pending"]


class Estimate(Document):
    """A measured value, and the ends of its 95 % interval where the store holds what it takes to know them."""

    value: float
    low: float | None = None
    high: float | None = None


class Pairing(Document):
    """Two models on the same validation rows: counts of rows, and McNemar's exact test."""

    both_right: int
    only_teacher_right: int
    only_student_right: int
    both_wrong: int
    p_value: float


class ModelReport(Document):
    """The root teacher or a student."""

    name: str
    parameters: int
    size_bytes: int
    metric: Estimate
    """`metric` of the report on validation."""
    accuracy: Estimate
    macro_f1: Estimate
    test: Estimate | None = None
    """`metric` on test."""
    retention: Estimate | None = None
    """Its metric over the root teacher's; none of the root itself."""
    compression: float
    """Parameters of the root teacher over its own."""
    examples_per_second: float | None = None
    pretrained: bool | None = None
    """False: started from new weights. None: the root teacher as it was given."""


class Run(Document):
    """What a committed stage took, and where its result came from."""

    chain: str
    """Who trained it."""
    attempt: str
    committed_at: str
    reused: bool
    """Trained by another chain, or found committed when this one ran."""
    resumed: bool
    logits_reused: bool
    elapsed_s: float
    model_s: float
    gpu_hours: float
    """Wall hours on a GPU; 0 on a CPU. A stage has one pod, and that uses one GPU."""
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
    data_revision: str
    recipe: dict[str, Any]
    environment: dict[str, str]
    checkpoint: str


class StageReport(Document):
    """One step of the chain."""

    name: str
    digest: str
    teacher_name: str
    standing: StandingOf
    message: str | None = None
    failure_class: FailureClass | None = None
    model: ModelReport | None = None
    """The committed student; of a failed stage too, where its commit is there."""
    run: Run | None = None
    against_teacher: Pairing | None = None
    """Against the stage's own teacher."""
    teacher_metric: float | None = None
    """The stage's own teacher, as this stage measured it."""
    history: list[HistoryPoint] = []


class ClassReport(Document):
    """One class of the last committed student on validation."""

    label: str
    rows: int
    recall: Estimate | None = None
    """None: the class has no rows."""
    precision: Estimate | None = None
    """None: it was never predicted."""
    f1: Estimate


class Difference(Document):
    """A validation row on which root teacher and last committed student differ much."""

    row: int
    text: list[str] | None = None
    label: str
    teacher: str
    teacher_probability: float
    student: str
    student_probability: float
    distance: float
    """Total variation between the two models' probabilities."""


class Totals(Document):
    """All committed stages together."""

    stages: int
    committed: int
    reused: int
    elapsed_s: float
    reused_share: float
    """Of the wall time: what did not have to be trained again."""
    gpu_hours: float


class Report(Document):
    """A chain as its store tells it."""

    report: Literal[1] = 1
    chain: str
    generated_at: str
    """RFC 3339, UTC."""
    distillchain: str
    """Version that made this report."""
    storage: str
    manifests: str
    """sha256 over the manifests it was made of."""
    outcome: Outcome
    verdict: str
    metric: str
    task: dict[str, Any] | None = None
    """Of the recipe; none while nothing is committed."""
    rows: dict[str, int] = {}
    """Of each split."""
    most_frequent: Estimate | None = None
    """`metric` of always answering the most frequent class of validation."""
    root: ModelReport | None = None
    stages: list[StageReport]
    against_root: Pairing | None = None
    """The last committed student against the root teacher."""
    labels: list[str] = []
    confusion: list[list[int]] | None = None
    """Of the last committed student: rows are the true class, columns the predicted one."""
    classes: list[ClassReport] = []
    differences: list[Difference] = []
    totals: Totals
    missing: list[str] = []

    @property
    def last(self) -> StageReport | None:
        """The last committed stage."""
        return next((stage for stage in reversed(self.stages) if stage.model), None)

    @property
    def models(self) -> list[ModelReport]:
        """Root teacher first, then the committed students from large to small."""
        students = [stage.model for stage in self.stages if stage.model and stage.model is not self.root]
        return ([self.root] if self.root else []) + students
