"""TokenClassification in the report: intervals and tests of entity F1 and token accuracy, kinds of entities, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_report.commits import CommittedFiles
from distillchain_report.evidence.pseudo_values import of_ratio
from distillchain_report.model import ChanceLevel, Comparison, Counts, Report
from distillchain_report.section import Section, StageAnswers, load_answers
from distillchain_report.sections.token_classification import scores, view
from distillchain_report.sections.token_classification.details import TaggingDetails, build_details
from distillchain_report.sections.token_classification.predictions import Predictions, read_predictions
from distillchain_report.statistics import ALIKE_DRAWS, BOOTSTRAP_DRAWS, Floats, Interval

GUESSERS = {"entityF1": "the same tags in random order", "tokenAccuracy": "always giving the most frequent tag"}


class TokenClassificationSection(Section[Predictions]):
    """The section of a TokenClassification task."""

    template = Path(__file__).with_name("section.html")
    methods = (
        "Entities are counted as seqeval 1.2.2 counts them by default. Intervals come from a bootstrap over sentences "
        f"with {BOOTSTRAP_DRAWS:,} draws. {ALIKE_DRAWS} p-values come from a two-sided paired permutation test of "
        "the chain’s metric, which swaps whole sentences, and are not corrected for the number of steps."
    )

    @property
    def labels(self) -> Sequence[str]:
        """Tags in the order of the task."""
        labels: Sequence[str] = self.task.get("labels", [])
        return labels

    def load(self, files: CommittedFiles) -> StageAnswers[Predictions]:
        """See Section."""
        return load_answers(
            files,
            lambda name, lost: read_predictions(files, name, self.labels, lost=lost),
            lost="no intervals and no comparison",
            lost_on_test="no interval on test",
        )

    def interval(
        self,
        metric: str,
        value: float,
        *,
        rows: int,
        answers: Predictions | None,
    ) -> Interval | None:
        """See Section. The number of rows is not enough: the words of a sentence are not independent."""
        if answers is None or metric not in GUESSERS:
            return None
        return scores.interval(scores.ratio_of(metric, answers))

    def retention_interval(self, metric: str, *, teacher: Predictions, student: Predictions) -> Interval | None:
        """See Section."""
        if not teacher.has_same_rows(student):
            return None
        return scores.retention_interval(scores.ratio_of(metric, teacher), scores.ratio_of(metric, student))

    def compare(self, metric: str, *, teacher: Predictions, student: Predictions) -> Comparison | None:
        """See Section. A sentence is right if all its tags are."""
        if not teacher.has_same_rows(student):
            return None
        theirs, ours = scores.ratio_of(metric, teacher), scores.ratio_of(metric, student)
        right = [_all_right(answers) for answers in (teacher, student)]
        return Comparison(
            difference=ours.value - theirs.value,
            p_value=scores.permutation_p_value(theirs, ours),
            counts=Counts(
                both_right=int((right[0] & right[1]).sum()),
                only_teacher_right=int((right[0] & ~right[1]).sum()),
                only_student_right=int((~right[0] & right[1]).sum()),
                both_wrong=int((~right[0] & ~right[1]).sum()),
            ),
        )

    def has_same_rows(self, first: Predictions, second: Predictions) -> bool:
        """See Section."""
        return first.has_same_rows(second)

    def contributions(self, metric: str, answers: Predictions) -> Floats | None:
        """See Section."""
        ratio = scores.ratio_of(metric, answers)
        return of_ratio(ratio.above, ratio.below)

    def chance(self, metric: str, student: Predictions) -> ChanceLevel | None:
        """See Section."""
        return ChanceLevel(value=scores.chance_level(metric, student), guesser=GUESSERS[metric])

    def details(
        self, student: Predictions, *, root: Predictions | None, texts: Mapping[int, list[str]]
    ) -> TaggingDetails:
        """See Section."""
        has_same_rows = root is not None and root.has_same_rows(student)
        return build_details(student, root=root if has_same_rows else None, texts=texts)

    def template_values(self, report: Report) -> dict[str, Any]:
        """See Section."""
        return view.template_values(report)

    def markdown(self, report: Report) -> list[str]:
        """See Section."""
        return view.markdown(report)


def _all_right(answers: Predictions) -> NDArray[np.bool_]:
    """Whether each sentence has the right tag at every word [sentences]."""
    ratio = scores.ratio_of("tokenAccuracy", answers)
    found: NDArray[np.bool_] = ratio.above == ratio.below
    return found


SECTION = TokenClassificationSection
