"""What the report shows of a classifier: its classes, its confusions, and the rows where it differs from its root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distillchain_api.base import Document
from distillchain_api.faults import listed
from distillchain_report.model import Estimate, SectionDetails
from distillchain_report.sections.text_classification import scores
from distillchain_report.sections.text_classification.predictions import Predictions, distances, most_different, softmax

FEW_ROWS = 5  # of a class: a good student may miss this class by bad luck, so never naming it raises no doubt
NAMED_CLASSES = 5  # in a sentence


class ClassReport(Document):
    """One class on validation."""

    label: str
    rows: int
    predicted: int
    """Rows that the student assigns to the class, right or wrong."""
    recall: Estimate | None = None
    """None: the class has no rows."""
    precision: Estimate | None = None
    """None: the class is never predicted."""
    f1: Estimate | None = None
    """None: the class has no rows. It then does not count for macro F1."""


class DifferingRow(Document):
    """A validation row on which the root teacher and the last committed student differ much."""

    row: int
    text: list[str] | None = None
    label: str
    teacher: str
    teacher_probability: float
    student: str
    student_probability: float
    distance: float
    """Total variation between the two models' probabilities."""


class ClassificationDetails(SectionDetails):
    """The last committed student on validation."""

    labels: list[str]
    confusion: list[list[int]]
    """Rows are the true class, columns the predicted one."""
    classes: list[ClassReport]
    differences: list[DifferingRow] = []

    @property
    def doubts(self) -> list[str]:
        """Classes that the student never predicts, although validation has more than a few rows of them."""
        never = [found.label for found in self.classes if not found.predicted and found.rows >= FEW_ROWS]
        if not never:
            return []
        names = listed(never, most=NAMED_CLASSES)
        occurring = sum(found.rows > 0 for found in self.classes)
        return [f"never predicts {len(never)} of {occurring} classes of validation: {names}"]


def build_details(
    student: Predictions, *, root: Predictions | None, labels: Sequence[str], texts: Mapping[int, list[str]]
) -> ClassificationDetails:
    """The details of a student; `root` are the root teacher's predictions on the same rows."""
    return ClassificationDetails(
        labels=list(labels),
        confusion=scores.confusion(student.truth, student.predicted, len(labels)).tolist(),
        classes=_classes(student, labels),
        differences=_differing_rows(root, student, labels, texts) if root else [],
    )


def _classes(student: Predictions, labels: Sequence[str]) -> list[ClassReport]:
    table = scores.confusion(student.truth, student.predicted, len(labels))
    # For all classes at once: they share the draws, and 1,000 classes take seconds.
    f1_intervals = scores.f1_intervals(student.truth, student.predicted, len(labels))
    found = []
    for index, (label, (low, high)) in enumerate(zip(labels, f1_intervals, strict=True)):
        hits, rows, predicted = int(table[index, index]), int(table[index].sum()), int(table[:, index].sum())
        f1 = Estimate(value=2 * hits / (rows + predicted), low=low, high=high) if rows else None
        found.append(
            ClassReport(
                label=label,
                rows=rows,
                predicted=predicted,
                recall=Estimate.of_share(hits, rows),
                precision=Estimate.of_share(hits, predicted),
                f1=f1,
            )
        )
    return found


def _differing_rows(
    root: Predictions, student: Predictions, labels: Sequence[str], texts: Mapping[int, list[str]]
) -> list[DifferingRow]:
    theirs, ours = softmax(root.logits), softmax(student.logits)
    # Distances of probabilities, not of logits: a shift of all logits of a row changes no answer.
    apart = distances(theirs, ours)
    return [
        DifferingRow(
            row=row,
            text=texts.get(row),
            label=labels[student.truth[row]],
            teacher=labels[root.predicted[row]],
            teacher_probability=float(theirs[row].max()),
            student=labels[student.predicted[row]],
            student_probability=float(ours[row].max()),
            distance=float(apart[row]),
        )
        for row in most_different(theirs, ours)
    ]
