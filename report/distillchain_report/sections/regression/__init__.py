"""Regression in the report: intervals and tests of correlations and errors, errors by range, example rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distillchain_report.commits import CommittedFiles
from distillchain_report.model import ChanceLevel, Comparison, Report
from distillchain_report.section import Section, StageAnswers, load_answers
from distillchain_report.sections.regression import scores, view
from distillchain_report.sections.regression.details import RegressionDetails, build_details
from distillchain_report.sections.regression.predictions import Numbers, read_predictions
from distillchain_report.statistics import BOOTSTRAP_DRAWS, Floats, Interval


class RegressionSection(Section[Numbers]):
    """The section of a Regression task."""

    template = Path(__file__).with_name("section.html")
    methods = (
        f"Intervals come from a bootstrap over rows with {BOOTSTRAP_DRAWS:,} draws, fewer for more than 2,500 rows. "
        "p-values come from a two-sided paired permutation test of the chain’s metric and are not corrected for the "
        "number of steps."
    )

    def load(self, files: CommittedFiles) -> StageAnswers[Numbers]:
        """See Section."""
        return load_answers(
            files,
            lambda name, lost: read_predictions(files, name, lost=lost),
            lost="no intervals of its metrics and no comparison",
            lost_on_test="no interval of its metric on test",
        )

    def interval(
        self,
        metric: str,
        value: float,
        *,
        rows: int,
        answers: Numbers | None,
    ) -> Interval | None:
        """See Section."""
        return scores.metric_interval(metric, answers.truth, answers.predicted) if answers else None

    def compare(self, metric: str, *, teacher: Numbers, student: Numbers) -> Comparison | None:
        """See Section."""
        # Other rows, or the same ones in another order: a paired test would be meaningless.
        if not np.array_equal(teacher.truth, student.truth):
            return None
        values = [scores.metric_value(metric, student.truth, answers.predicted) for answers in (teacher, student)]
        return Comparison(
            difference=values[1] - values[0],
            p_value=scores.permutation_p_value(metric, student.truth, teacher.predicted, student.predicted),
        )

    def has_same_rows(self, first: Numbers, second: Numbers) -> bool:
        """See Section."""
        return np.array_equal(first.truth, second.truth)

    def contributions(self, metric: str, answers: Numbers) -> Floats | None:
        """See Section."""
        return scores.contributions(metric, answers.truth, answers.predicted)

    def chance(self, metric: str, student: Numbers) -> ChanceLevel | None:
        """See Section."""
        best = "the median" if metric == "mae" else "the mean"
        return ChanceLevel(value=scores.constant_answer(metric, student.truth), guesser=f"always answering {best}")

    def details(self, student: Numbers, *, root: Numbers | None, texts: Mapping[int, list[str]]) -> RegressionDetails:
        """See Section."""
        same_rows = root is not None and np.array_equal(root.truth, student.truth)
        return build_details(student, root=root if same_rows else None, texts=texts)

    def template_values(self, report: Report) -> dict[str, Any]:
        """See Section."""
        return view.template_values()

    def markdown(self, report: Report) -> list[str]:
        """See Section."""
        return view.markdown(report)


SECTION = RegressionSection
