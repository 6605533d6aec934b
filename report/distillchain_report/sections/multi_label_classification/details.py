"""What the report shows of a multi-label model: its labels, and the rows where it differs most from its root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distillchain_api.base import Document
from distillchain_api.wire.records import EXAMPLES
from distillchain_report.model import Estimate, SectionDetails
from distillchain_report.sections.multi_label_classification import scores
from distillchain_report.sections.multi_label_classification.predictions import (
    LabelPredictions,
    distances,
    probabilities,
)

FEW_ROWS = 5  # of a label: a good student may miss it by bad luck, so never answering it raises no doubt
NAMED_LABELS = 5  # in a sentence


class LabelReport(Document):
    """One label on validation."""

    label: str
    rows: int
    predicted: int
    """Rows that get the label, right or wrong."""
    recall: Estimate | None = None
    """None: no row has the label."""
    precision: Estimate | None = None
    """None: the label is never predicted."""
    f1: Estimate | None = None
    """None: no row has the label. It then does not count for macro F1."""


class DifferingLabels(Document):
    """A validation row on which the root teacher and the last committed student differ much."""

    row: int
    text: list[str] | None = None
    labels: list[str]
    teacher: list[str]
    student: list[str]
    most: str
    """The label whose probability differs most."""
    teacher_probability: float
    student_probability: float


class MultiLabelDetails(SectionDetails):
    """The last committed student on validation."""

    labels: list[LabelReport]
    without_label: int
    """Rows without a label."""
    differences: list[DifferingLabels] = []

    @property
    def doubts(self) -> list[str]:
        """Labels that the student never predicts, although validation has more than a few rows of them."""
        never = [found.label for found in self.labels if not found.predicted and found.rows >= FEW_ROWS]
        if not never:
            return []
        names = ", ".join(never[:NAMED_LABELS]) + (", ..." if len(never) > NAMED_LABELS else "")
        occurring = sum(found.rows > 0 for found in self.labels)
        return [f"never predicts {len(never)} of {occurring} labels of validation: {names}"]


def build_details(
    student: LabelPredictions,
    *,
    root: LabelPredictions | None,
    labels: Sequence[str],
    texts: Mapping[int, list[str]],
) -> MultiLabelDetails:
    """The details of a student; `root` are the root teacher's predictions on the same rows."""
    return MultiLabelDetails(
        labels=_labels(student, labels),
        without_label=int((~student.truth.any(axis=1)).sum()),
        differences=_differing_rows(root, student, labels, texts) if root else [],
    )


def _labels(student: LabelPredictions, labels: Sequence[str]) -> list[LabelReport]:
    truth, predicted = student.truth, student.predicted
    hits, rows, guesses = ((truth & predicted).sum(axis=0), truth.sum(axis=0), predicted.sum(axis=0))
    found = []
    for index, (low, high) in enumerate(scores.f1_intervals(truth, predicted)):
        hit, of_label, guessed = int(hits[index]), int(rows[index]), int(guesses[index])
        found.append(
            LabelReport(
                label=labels[index],
                rows=of_label,
                predicted=guessed,
                recall=Estimate.of_share(hit, of_label),
                precision=Estimate.of_share(hit, guessed),
                f1=Estimate(value=2 * hit / (of_label + guessed), low=low, high=high) if of_label else None,
            )
        )
    return found


def _differing_rows(
    root: LabelPredictions, student: LabelPredictions, labels: Sequence[str], texts: Mapping[int, list[str]]
) -> list[DifferingLabels]:
    theirs, ours = probabilities(root.logits), probabilities(student.logits)
    most = np.abs(theirs - ours).argmax(axis=1).tolist()
    found = []
    for row in np.argsort(-distances(theirs, ours), kind="stable")[:EXAMPLES].tolist():
        named = [
            [labels[index] for index in np.flatnonzero(table[row]).tolist()]
            for table in (student.truth, root.predicted, student.predicted)
        ]
        found.append(
            DifferingLabels(
                row=row,
                text=texts.get(row),
                labels=named[0],
                teacher=named[1],
                student=named[2],
                most=labels[most[row]],
                teacher_probability=float(theirs[row, most[row]]),
                student_probability=float(ours[row, most[row]]),
            )
        )
    return found
