"""MultiLabelClassification in the report: intervals and tests of its metrics, labels, example rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillchain_report.commits import CommittedFiles
from distillchain_report.model import ChanceLevel, Comparison, Counts, Report
from distillchain_report.section import Section, StageAnswers, load_answers
from distillchain_report.sections.multi_label_classification import scores, view
from distillchain_report.sections.multi_label_classification.details import MultiLabelDetails, build_details
from distillchain_report.sections.multi_label_classification.predictions import LabelPredictions, read_predictions
from distillchain_report.statistics import ALIKE_DRAWS, BOOTSTRAP_DRAWS, Floats, Interval


class MultiLabelSection(Section[LabelPredictions]):
    """The section of a MultiLabelClassification task."""

    template = Path(__file__).with_name("section.html")
    methods = (
        "Intervals of subset accuracy, recall and precision are Wilson’s; the others come from a bootstrap over rows "
        f"with {BOOTSTRAP_DRAWS:,} draws, fewer for large tables. {ALIKE_DRAWS} p-values come from a two-sided paired "
        "permutation test of the chain’s metric and are not corrected for the number of steps. A row counts as right "
        "if all its labels are."
    )

    @property
    def labels(self) -> Sequence[str]:
        """Names of the labels in the order of the task."""
        labels: Sequence[str] = self.task.get("labels", [])
        return labels

    def load(self, files: CommittedFiles) -> StageAnswers[LabelPredictions]:
        """See Section."""
        return load_answers(
            files,
            lambda name, lost: read_predictions(files, name, self.labels, lost=lost),
            lost="no intervals of its metrics and no comparison",
            lost_on_test="no interval of its metric on test",
        )

    def interval(
        self,
        metric: str,
        value: float,
        *,
        rows: int,
        answers: LabelPredictions | None,
    ) -> Interval | None:
        """See Section."""
        return scores.metric_interval(metric, answers.truth, answers.predicted) if answers else None

    def retention_interval(
        self, metric: str, *, teacher: LabelPredictions, student: LabelPredictions
    ) -> Interval | None:
        """See Section."""
        # Other rows, or the same ones in another order: a paired interval would be meaningless.
        if not np.array_equal(teacher.truth, student.truth):
            return None
        return scores.retention_interval(metric, student.truth, teacher.predicted, student.predicted)

    def compare(self, metric: str, *, teacher: LabelPredictions, student: LabelPredictions) -> Comparison | None:
        """See Section."""
        if not np.array_equal(teacher.truth, student.truth):
            return None
        truth = student.truth
        theirs, ours = ((answers.predicted == truth).all(axis=1) for answers in (teacher, student))
        values = [scores.metric_value(metric, truth, answers.predicted) for answers in (teacher, student)]
        return Comparison(
            difference=values[1] - values[0],
            p_value=scores.permutation_p_value(metric, truth, teacher.predicted, student.predicted),
            counts=Counts(
                both_right=int((theirs & ours).sum()),
                only_teacher_right=int((theirs & ~ours).sum()),
                only_student_right=int((~theirs & ours).sum()),
                both_wrong=int((~theirs & ~ours).sum()),
            ),
        )

    def has_same_rows(self, first: LabelPredictions, second: LabelPredictions) -> bool:
        """See Section."""
        return np.array_equal(first.truth, second.truth)

    def contributions(self, metric: str, answers: LabelPredictions) -> Floats | None:
        """See Section."""
        return scores.contributions(metric, answers.truth, answers.predicted)

    def chance(self, metric: str, student: LabelPredictions) -> ChanceLevel | None:
        """See Section."""
        level = scores.constant_answer(metric, student.truth)
        return ChanceLevel(value=level, guesser="always answering the same labels")

    def details(
        self, student: LabelPredictions, *, root: LabelPredictions | None, texts: Mapping[int, list[str]]
    ) -> MultiLabelDetails:
        """See Section."""
        same_rows = root is not None and np.array_equal(root.truth, student.truth)
        return build_details(student, root=root if same_rows else None, labels=self.labels, texts=texts)

    def template_values(self, report: Report) -> dict[str, Any]:
        """See Section."""
        return view.template_values(report)

    def markdown(self, report: Report) -> list[str]:
        """See Section."""
        return view.markdown(report)


SECTION = MultiLabelSection
