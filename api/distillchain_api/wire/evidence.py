"""The comparison of a chain with its controls: what the trainer compares, and what it finds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distillchain_api.base import Document, Record
from distillchain_api.faults import Expect
from distillchain_api.resource.evidence import Control, Outcome

StageDigestText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), Expect("64 hexadecimal digits")]


class ComparedStudent(Document):
    """One of the committed students."""

    name: str
    """Of its vertex."""
    digest: StageDigestText
    control: Control | None = None
    """None: the chain's own recipe."""
    seed: int


class ComparedStage(Document):
    """A stage of the chain with its controls."""

    stage: str
    students: list[ComparedStudent]

    def students_of(self, control: Control | None) -> list[ComparedStudent]:
        """Those of one control, or of the chain, by seed."""
        return [student for student in self.students if student.control == control]

    @property
    def judged_controls(self) -> list[Control]:
        """The controls with two students at least, if the chain has two as well; fewer have no spread."""
        found: list[Control] = []
        for student in self.students:
            if student.control and student.control not in found and len(self.students_of(student.control)) > 1:
                found.append(student.control)
        return found if len(self.students_of(None)) > 1 else []


class EvidenceOrder(Document):
    """What the verdict compares. All students are committed."""

    stages: list[ComparedStage]
    """In the order of the chain; the last one is the last that has controls."""
    chain_digest: StageDigestText
    """Of the chain's last stage: verdict and report are stored beside its manifest."""
    smallest_gain: float | None = None
    """As the spec states it."""
    missing: list[str] = []
    """Names of the students that are left out because they failed, or because a pass that they need did."""

    @property
    def can_be_judged(self) -> bool:
        """Whether there is a control to compare the last stage with."""
        return bool(self.stages and self.stages[-1].judged_controls)


class ControlVerdict(Record):
    """One control, as far as status shows it."""

    control: Control
    metric: float
    """Mean of `task.metric` over its students, on validation."""
    difference: float
    """The chain's mean minus this one."""
    low: float
    high: float
    """Ends of the interval of the difference, for other rows and seeds. With two controls, both intervals together
    cover with 95 %."""
    p_value: float
    """Two-sided; multiplied by the number of controls."""
    detectable: float
    """The smallest difference that these rows and seeds would have found with a probability of 80 %."""


class ControlEvidence(ControlVerdict):
    """One control."""

    names: list[str]
    """Of its students."""
    values: list[float]
    """`task.metric` of each on validation."""
    metric_low: float
    metric_high: float
    """95 % interval of `metric`, for other rows and seeds."""
    gpu_hours: float
    """Mean of its students, of the root teacher nothing."""
    steps: int
    """Optimizer steps of its first student."""


class StageVerdict(Record):
    """One stage of the chain beside its controls, as far as status shows it."""

    stage: str
    metric: float
    """Mean over the students with the chain's own recipe."""
    seeds: int
    """Students of the recipe that has the fewest."""
    rows: int
    """Of validation."""
    smallest_gain: float
    outcome: Outcome
    control: Control
    """The one that decided; for WorthIt the strongest."""
    sentence: str
    seeds_to_decide: int | None = None
    rows_to_decide: int | None = None
    """How many would probably decide, the other number unchanged; empty: decided, or not within reach."""


class StageEvidence(StageVerdict):
    """One stage of the chain beside its controls."""

    names: list[str]
    """Of the students with the chain's own recipe, one for each seed."""
    values: list[float]
    metric_low: float
    metric_high: float
    """95 % interval of `metric`, for other rows and seeds."""
    gpu_hours: float
    """Mean of these students, without the stages before."""
    steps: int
    """Optimizer steps of the first one."""
    controls: list[ControlEvidence]


class EvidenceDocument(Record):
    """The verdict, as it is in the store (layout.evidence_key)."""

    contract: Literal[1] = 1
    digest: StageDigestText
    """Of the verdict: what is compared."""
    chain: str
    metric: str
    stages: Annotated[list[StageEvidence], Field(min_length=1)]
    """Those that could be judged, in the order of the chain."""
    missing: list[str] = []
    """What is left out, a sentence each."""
    students: list[ComparedStudent]
    """All that were to be compared."""
    made_at: str
    """RFC 3339, UTC."""

    @property
    def last(self) -> StageEvidence:
        """The last stage that was judged."""
        return self.stages[-1]

    def summary(self) -> EvidenceSummary:
        """What fits into an answer."""
        last = StageVerdict.parse(self.last.to_document())
        controls = [ControlVerdict.parse(control.to_document()) for control in self.last.controls]
        others = [OtherVerdict.parse(stage.to_document()) for stage in self.stages[:-1]]
        return EvidenceSummary(last=last, controls=controls, others=others, missing=self.missing)


class OtherVerdict(Record):
    """An earlier stage of the chain, with `stages: Every`."""

    stage: str
    outcome: Outcome
    control: Control
    sentence: str


class EvidenceSummary(Record):
    """The verdict in the trainer's answer."""

    last: StageVerdict
    controls: list[ControlVerdict]
    others: list[OtherVerdict] = []
    """As many as fit into the answer; the document has all."""
    missing: list[str] = []
