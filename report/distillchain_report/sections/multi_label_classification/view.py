"""How the section is written: values for its HTML template, and its Markdown."""

from __future__ import annotations

from typing import Any

from distillchain_report import words
from distillchain_report.markdown_text import table
from distillchain_report.model import Report
from distillchain_report.sections.multi_label_classification.details import LabelReport, MultiLabelDetails

LISTED_LABELS = 20


def template_values(report: Report) -> dict[str, Any]:
    """Values for section.html."""
    return {"labels": weakest_labels(_details(report)), "text_words": text_words, "label_words": label_words}


def weakest_labels(details: MultiLabelDetails) -> list[LabelReport]:
    """All labels if they are few, otherwise those with the lowest F1; a label without rows comes last."""
    if len(details.labels) <= LISTED_LABELS:
        return details.labels
    # 2.0 is above every F1.
    return sorted(details.labels, key=lambda found: found.f1.value if found.f1 else 2.0)[:LISTED_LABELS]


def text_words(text: list[str] | None) -> str:
    """The texts of a row."""
    return "(its text was not kept)" if text is None else " · ".join(text)


def label_words(labels: list[str]) -> str:
    """The labels of a row."""
    return ", ".join(labels) or "none"


def markdown(report: Report) -> list[str]:
    """The section as Markdown blocks."""
    details = _details(report)
    last = report.last.name if report.last else ""
    rows = [
        [
            found.label,
            str(found.rows),
            *words.share_cells(found.recall),
            *words.share_cells(found.precision),
            *words.share_cells(found.f1),
        ]
        for found in weakest_labels(details)
    ]
    head = ["label", "rows", "recall", "95 % interval", "precision", "95 % interval", "F1", "95 % interval"]
    parts = [f"## Labels of {last}", table(head, rows)]
    if details.differences:
        different = [
            [str(found.row), text_words(found.text), label_words(found.labels), label_words(found.teacher),
             label_words(found.student), found.most, words.percent(found.teacher_probability, 0),
             words.percent(found.student_probability, 0)]
            for found in details.differences
        ]  # fmt: skip
        names = ["row", "text", "labels", "teacher", last, "differs most", "teacher", last]
        parts += [f"## Where teacher and {last} differ most", table(names, different)]
    return parts


def _details(report: Report) -> MultiLabelDetails:
    assert isinstance(report.details, MultiLabelDetails)
    return report.details
