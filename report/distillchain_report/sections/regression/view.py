"""How the section is written: values for its HTML template, and its Markdown."""

from __future__ import annotations

from typing import Any

from distillchain_report.markdown_text import table
from distillchain_report.model import Report
from distillchain_report.sections.regression.details import RangeReport, RegressionDetails
from distillchain_report.words import change, number


def template_values() -> dict[str, Any]:
    """Values for section.html."""
    return {"number": number, "change": change, "range_words": range_words, "text_words": text_words}


def range_words(found: RangeReport) -> str:
    """The true numbers of a range."""
    return number(found.low) if found.low == found.high else f"{number(found.low)} to {number(found.high)}"


def text_words(text: list[str] | None) -> str:
    """The texts of a row."""
    return "(its text was not kept)" if text is None else " · ".join(text)


def markdown(report: Report) -> list[str]:
    """The section as Markdown blocks."""
    details = _details(report)
    last = report.last.name if report.last else ""
    head = ["true number", "rows", "mean prediction", "bias", "mean absolute error", "root teacher's error"]
    rows = [
        [range_words(found), str(found.rows), number(found.predicted), change(found.bias), number(found.error),
         number(found.teacher_error)]
        for found in details.ranges
    ]  # fmt: skip
    parts = [f"## Errors of {last}", table(head, rows)]
    if details.differences:
        different = [
            [str(found.row), text_words(found.text), number(found.target), number(found.teacher), number(found.student)]
            for found in details.differences
        ]
        names = ["row", "text", "true number", "teacher", last]
        parts += [f"## Where teacher and {last} differ most", table(names, different)]
    return parts


def _details(report: Report) -> RegressionDetails:
    assert isinstance(report.details, RegressionDetails)
    return report.details
