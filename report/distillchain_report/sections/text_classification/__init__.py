"""TextClassification in the report: intervals and tests of accuracy and macro F1, classes, confusions, example rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillchain_report.commits import CommittedFiles
from distillchain_report.model import ChanceLevel, Comparison, Counts, Report
from distillchain_report.section import Section, StageAnswers, load_answers
from distillchain_report.sections.text_classification import scores, view
from distillchain_report.sections.text_classification.details import ClassificationDetails, build_details
from distillchain_report.sections.text_classification.predictions import Predictions, read_predictions
from distillchain_report.statistics import ALIKE_DRAWS, BOOTSTRAP_DRAWS, Floats, Interval, share_interval

GUESSERS = {"accuracy": "always naming the most frequent class", "macroF1": "guessing as often for each class"}


class TextClassificationSection(Section[Predictions]):
    """The section of a TextClassification task."""

    template = Path(__file__).with_name("section.html")
    methods = (
        "Intervals of accuracy, recall and precision are Wilson’s; the others come from a bootstrap over rows with "
        f"{BOOTSTRAP_DRAWS:,} draws. {ALIKE_DRAWS} p-values come from a two-sided paired permutation test of "
        "the chain’s metric and are not corrected for the number of steps."
    )

    @property
    def labels(self) -> Sequence[str]:
        """Names of the classes in the order of the task."""
        labels: Sequence[str] = self.task.get("labels", [])
        return labels

    def load(self, files: CommittedFiles) -> StageAnswers[Predictions]:
        """See Section."""
        # The interval of accuracy needs only the number of rows, so the file is not read for it.
        return load_answers(
            files,
            lambda name, lost: read_predictions(files, name, self.labels, lost=lost),
            lost="no interval of its macro F1 and no comparison",
            lost_on_test="no interval of its macro F1 on test",
            needs_test=self.task.get("metric") == "macroF1",
        )

    def interval(self, metric: str, value: float, *, rows: int, answers: Predictions | None) -> Interval | None:
        """See Section. For accuracy the number of rows is enough; for macro F1 the predictions are needed."""
        if metric == "accuracy" and rows:
            return share_interval(round(value * rows), rows)
        return scores.metric_interval(metric, answers.truth, answers.predicted) if answers else None

    def retention_interval(self, metric: str, *, teacher: Predictions, student: Predictions) -> Interval | None:
        """See Section."""
        # Other rows, or the same ones in another order: a paired interval would be meaningless.
        if not np.array_equal(teacher.truth, student.truth):
            return None
        return scores.retention_interval(metric, student.truth, teacher.predicted, student.predicted)

    def compare(self, metric: str, *, teacher: Predictions, student: Predictions) -> Comparison | None:
        """See Section."""
        if not np.array_equal(teacher.truth, student.truth):
            return None
        answers = (student.truth, teacher.predicted, student.predicted)
        theirs, ours = teacher.predicted == teacher.truth, student.predicted == student.truth
        return Comparison(
            difference=scores.difference(metric, *answers),
            p_value=scores.permutation_p_value(metric, *answers),
            counts=Counts(
                both_right=int((theirs & ours).sum()),
                only_teacher_right=int((theirs & ~ours).sum()),
                only_student_right=int((~theirs & ours).sum()),
                both_wrong=int((~theirs & ~ours).sum()),
            ),
        )

    def has_same_rows(self, first: Predictions, second: Predictions) -> bool:
        """See Section."""
        return np.array_equal(first.truth, second.truth)

    def contributions(self, metric: str, answers: Predictions) -> Floats | None:
        """See Section."""
        return scores.contributions(metric, answers.truth, answers.predicted)

    def chance(self, metric: str, student: Predictions) -> ChanceLevel | None:
        """See Section."""
        level = scores.chance_level(metric, student.truth, student.predicted)
        return ChanceLevel(value=level, guesser=GUESSERS[metric])

    def details(
        self, student: Predictions, *, root: Predictions | None, texts: Mapping[int, list[str]]
    ) -> ClassificationDetails:
        """See Section."""
        same_rows = root is not None and np.array_equal(root.truth, student.truth)
        return build_details(student, root=root if same_rows else None, labels=self.labels, texts=texts)

    def template_values(self, report: Report) -> dict[str, Any]:
        """See Section."""
        return view.template_values(report)

    def markdown(self, report: Report) -> list[str]:
        """See Section."""
        return view.markdown(report)


SECTION = TextClassificationSection
