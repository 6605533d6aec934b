"""CausalLM in the report: intervals and tests of cross-entropy and perplexity, and the rows that were lost most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillchain_report.commits import CommittedFiles
from distillchain_report.markdown_text import table
from distillchain_report.model import ChanceLevel, Comparison, Report
from distillchain_report.section import Section, StageAnswers, load_answers
from distillchain_report.sections.causal_lm import scores
from distillchain_report.sections.causal_lm.details import LanguageDetails, build_details
from distillchain_report.sections.causal_lm.predictions import TokenPredictions, read_predictions
from distillchain_report.statistics import ALIKE_DRAWS, BOOTSTRAP_DRAWS, PERMUTATIONS, Floats, Interval


class CausalLMSection(Section[TokenPredictions]):
    """The section of a CausalLM task."""

    template = Path(__file__).with_name("section.html")
    methods = (
        f"Intervals come from a bootstrap over rows with {BOOTSTRAP_DRAWS:,} draws. {ALIKE_DRAWS} p-values come from a "
        f"two-sided paired permutation test of the chain’s metric that swaps the models row by row "
        f"({PERMUTATIONS:,} draws) and are not corrected for the number of steps."
    )

    def load(self, files: CommittedFiles) -> StageAnswers[TokenPredictions]:
        """See Section."""
        return load_answers(
            files,
            lambda name, lost: read_predictions(files, name, lost=lost),
            lost="no intervals and no comparison",
            lost_on_test="no interval on test",
        )

    def interval(self, metric: str, value: float, *, rows: int, answers: TokenPredictions | None) -> Interval | None:
        """See Section."""
        return scores.metric_interval(metric, answers) if answers else None

    def compare(self, metric: str, *, teacher: TokenPredictions, student: TokenPredictions) -> Comparison | None:
        """See Section."""
        if not student.is_of_same_rows(teacher):
            return None
        return Comparison(
            difference=scores.difference(metric, teacher, student),
            p_value=scores.permutation_p_value(metric, teacher, student),
        )

    def has_same_rows(self, first: TokenPredictions, second: TokenPredictions) -> bool:
        """See Section."""
        return first.is_of_same_rows(second)

    def contributions(self, metric: str, answers: TokenPredictions) -> Floats | None:
        """See Section."""
        return scores.contributions(metric, answers)

    def chance(self, metric: str, student: TokenPredictions) -> ChanceLevel | None:
        """See Section."""
        return ChanceLevel(
            value=scores.chance_level(metric, student), guesser="the frequencies of the tokens, without context"
        )

    def details(
        self, student: TokenPredictions, *, root: TokenPredictions | None, texts: Mapping[int, list[str]]
    ) -> LanguageDetails:
        """See Section."""
        same_rows = root is not None and student.is_of_same_rows(root)
        return build_details(student, root=root if same_rows else None, texts=texts)

    def template_values(self, report: Report) -> dict[str, Any]:
        """See Section."""
        return {"text_words": text_words, "nats": nats}

    def markdown(self, report: Report) -> list[str]:
        """See Section."""
        details, last = report.details, report.last.name if report.last else ""
        assert isinstance(details, LanguageDetails)
        if not details.lost:
            return []
        rows = [
            [str(found.row), text_words(found.text), str(found.tokens), nats(found.teacher), nats(found.student)]
            for found in details.lost
        ]
        head = ["row", "text", "tokens", "teacher, nats per token", f"{last}, nats per token"]
        return [f"## Rows that {last} predicts worse than the teacher", table(head, rows)]


def text_words(text: list[str] | None) -> str:
    """The texts of a row."""
    return "(its text was not kept)" if text is None else " · ".join(text)


def nats(value: float) -> str:
    """`2.34`."""
    return f"{value:.2f}"


SECTION = CausalLMSection
