"""What a task type adds to the report. The rest of the report is the same for every task type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from distillchain_api.wire.records import (
    EXAMPLES_FILE,
    PREDICTIONS_FILE,
    TEACHER_PREDICTIONS_FILE,
    TEST_PREDICTIONS_FILE,
    Example,
)
from distillchain_report.commits import CommittedFiles
from distillchain_report.model import ChanceLevel, Comparison, Report, SectionDetails
from distillchain_report.statistics import Floats, Interval

AnswersT = TypeVar("AnswersT")
"""A model's answers on one split, as a section reads them from a predictions file."""


@dataclass(frozen=True)
class StageAnswers(Generic[AnswersT]):
    """The predictions of one committed stage.

    Attributes:
        student, teacher: on validation; the teacher is the stage's own.
        on_test: the student on test, if an interval needs it.
        texts: of some validation rows, by row.
    """

    student: AnswersT | None = None
    teacher: AnswersT | None = None
    on_test: AnswersT | None = None
    texts: Mapping[int, list[str]] = field(default_factory=dict)


def load_answers(
    files: CommittedFiles,
    read: Callable[[str, str], AnswersT | None],
    *,
    lost: str,
    lost_on_test: str,
    needs_test: bool = True,
) -> StageAnswers[AnswersT]:
    """The predictions of a commit on validation and test, and the texts of its example rows.

    Args:
        read: reads one of its files, by name; the other argument is for `CommittedFiles.lines`, as the next ones are.
        lost: what the report lacks without the student's predictions.
        lost_on_test: what it lacks without those on test.
        needs_test: False: those on test are not read.
    """
    teacher, examples = files.manifest.teacher, files.lines(EXAMPLES_FILE, Example, lost="") or []
    # The predictions of a committed teacher are also kept with its own stage, so nothing is lost without these.
    lost_of_teacher = "no paired test against the root teacher" if teacher and teacher.digest is None else ""
    has_test = bool(files.manifest.student.metrics.test)
    return StageAnswers(
        student=read(PREDICTIONS_FILE, lost),
        teacher=read(TEACHER_PREDICTIONS_FILE, lost_of_teacher) if teacher else None,
        on_test=read(TEST_PREDICTIONS_FILE, lost_on_test) if has_test and needs_test else None,
        texts={example.row: example.text for example in examples},
    )


class Section(Generic[AnswersT]):
    """The section of one task. This class adds nothing and serves every task type without a section of its own.

    A section is a module or folder of `distillchain_report.sections` that is named like the task type in snake case
    (`TextClassification`: `text_classification`) and assigns its subclass to SECTION.
    """

    template: ClassVar[Path | None] = None
    """HTML of the section (Jinja); it gets `report`, `details` and the values of `template_values`."""

    methods: ClassVar[str] = ""
    """How intervals and tests are computed, for the foot of the page."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.task = task
        """`spec.task` as the recipe has it: of the stage that is loaded, or of the last committed one."""

    def load(self, files: CommittedFiles) -> StageAnswers[AnswersT]:
        """Reads the predictions of a commit; what cannot be used goes to `files.missing`."""
        return StageAnswers()

    def interval(self, metric: str, value: float, *, rows: int, answers: AnswersT | None) -> Interval | None:
        """The 95 % interval of a measured metric; None if it cannot be computed."""
        return None

    def retention_interval(self, metric: str, *, teacher: AnswersT, student: AnswersT) -> Interval | None:
        """The 95 % interval of student's metric divided by teacher's, both on the same rows."""
        return None

    def compare(self, metric: str, *, teacher: AnswersT, student: AnswersT) -> Comparison | None:
        """A paired test of the metric on the same rows; None if they are not the same."""
        return None

    def has_same_rows(self, first: AnswersT, second: AnswersT) -> bool:
        """Whether both are answers for the same rows in the same order, as far as the files show."""
        return False

    def contributions(self, metric: str, answers: AnswersT) -> Floats | None:
        """What each row contributes to the metric [rows]; None if the file lacks what the metric needs.

        Their mean is about the metric. For a metric that is no mean over rows, see evidence/pseudo_values.py.
        """
        return None

    def chance(self, metric: str, student: AnswersT) -> ChanceLevel | None:
        """The value that guessing reaches on the same rows."""
        return None

    def details(
        self, student: AnswersT, *, root: AnswersT | None, texts: Mapping[int, list[str]]
    ) -> SectionDetails | None:
        """What the section shows of the last committed student, beside the root teacher if both saw the same rows."""
        return None

    def template_values(self, report: Report) -> dict[str, Any]:
        """Further values for `template`."""
        return {}

    def markdown(self, report: Report) -> list[str]:
        """The section as Markdown blocks."""
        return []
