"""What the report shows of a regression: its errors by range of the true number, and the rows that differ most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distillchain_api.base import Document
from distillchain_api.wire.records import EXAMPLES
from distillchain_report.model import SectionDetails
from distillchain_report.sections.regression.predictions import Numbers

RANGES = 5
FLAT = 0.1  # of the spread of the true numbers: predictions that vary less hardly depend on the text


class RangeReport(Document):
    """The validation rows whose true number is in one range."""

    low: float
    high: float
    rows: int
    predicted: float
    """Mean prediction."""
    bias: float
    """Mean of prediction minus true number."""
    error: float
    """Mean absolute error."""
    teacher_error: float | None = None
    """That of the root teacher on the same rows."""


class DifferingNumber(Document):
    """A validation row on which the root teacher and the last committed student differ much."""

    row: int
    text: list[str] | None = None
    target: float
    teacher: float
    student: float


class RegressionDetails(SectionDetails):
    """The last committed student on validation."""

    ranges: list[RangeReport]
    spread: float
    """Standard deviation of the predictions divided by that of the true numbers."""
    differences: list[DifferingNumber] = []

    @property
    def doubts(self) -> list[str]:
        """Predictions that hardly depend on the text."""
        return ["predicts almost the same number for every text of validation"] if self.spread < FLAT else []


def build_details(student: Numbers, *, root: Numbers | None, texts: Mapping[int, list[str]]) -> RegressionDetails:
    """The details of a student; `root` are the root teacher's predictions on the same rows."""
    spread = float(student.truth.std())
    return RegressionDetails(
        ranges=_ranges(student, root),
        spread=float(student.predicted.std()) / spread if spread else 0.0,
        differences=_differing_rows(root, student, texts) if root else [],
    )


def _ranges(student: Numbers, root: Numbers | None) -> list[RangeReport]:
    """Ranges with about the same number of rows; fewer where many rows have the same number."""
    edges = np.unique(np.quantile(student.truth, np.linspace(0, 1, RANGES + 1)))
    # The last range includes its upper end.
    place = np.clip(np.searchsorted(edges, student.truth, side="right") - 1, 0, max(len(edges) - 2, 0))
    found = []
    for index in np.unique(place).tolist():
        inside = place == index
        errors = student.predicted[inside] - student.truth[inside]
        teacher = None if root is None else float(np.abs(root.predicted[inside] - root.truth[inside]).mean())
        found.append(
            RangeReport(
                low=float(student.truth[inside].min()),
                high=float(student.truth[inside].max()),
                rows=int(inside.sum()),
                predicted=float(student.predicted[inside].mean()),
                bias=float(errors.mean()),
                error=float(np.abs(errors).mean()),
                teacher_error=teacher,
            )
        )
    return found


def _differing_rows(root: Numbers, student: Numbers, texts: Mapping[int, list[str]]) -> list[DifferingNumber]:
    apart = np.abs(root.predicted - student.predicted)
    return [
        DifferingNumber(
            row=row,
            text=texts.get(row),
            target=float(student.truth[row]),
            teacher=float(root.predicted[row]),
            student=float(student.predicted[row]),
        )
        for row in np.argsort(-apart, kind="stable")[:EXAMPLES].tolist()
    ]
