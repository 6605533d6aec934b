"""How the section is written: values for its HTML template, and its Markdown."""

from __future__ import annotations

from typing import Any

from distillchain_report import words
from distillchain_report.markdown_text import table
from distillchain_report.model import Report
from distillchain_report.sections.text_classification.details import ClassificationDetails, ClassReport

MATRIX_CLASSES = 12  # a larger matrix is neither read at a glance nor fits a printed page
UPRIGHT_CLASSES = 4  # with more, the names above the columns are turned so that the columns stay narrow
LISTED_CLASSES = 20


def template_values(report: Report) -> dict[str, Any]:
    """Values for section.html."""
    details = _details(report)
    return {
        "matrix": confusion_cells(details),
        "classes": weakest_classes(details),
        "turned": len(details.labels) > UPRIGHT_CLASSES,
        "text_words": text_words,
    }


def confusion_cells(details: ClassificationDetails) -> list[list[tuple[int, float]]] | None:
    """The rows of each cell, and their share of the true class; None if there are too many classes for a matrix."""
    if len(details.labels) > MATRIX_CLASSES:
        return None
    return [[(cell, cell / max(sum(row), 1)) for cell in row] for row in details.confusion]


def weakest_classes(details: ClassificationDetails) -> list[ClassReport]:
    """All classes if they are few, otherwise those with the lowest F1; a class without rows comes last."""
    if len(details.classes) <= LISTED_CLASSES:
        return details.classes
    # 2.0 is above every F1.
    return sorted(details.classes, key=lambda found: found.f1.value if found.f1 else 2.0)[:LISTED_CLASSES]


def text_words(text: list[str] | None) -> str:
    """The texts of a row."""
    return "(its text was not kept)" if text is None else " · ".join(text)


def markdown(report: Report) -> list[str]:
    """The section as Markdown blocks."""
    details = _details(report)
    last = report.last.name if report.last else ""
    class_rows = [
        [
            found.label,
            str(found.rows),
            *words.share_cells(found.recall),
            *words.share_cells(found.precision),
            *words.share_cells(found.f1),
        ]
        for found in weakest_classes(details)
    ]
    head = ["class", "rows", "recall", "95 % interval", "precision", "95 % interval", "F1", "95 % interval"]
    parts = [f"## Classes of {last}", table(head, class_rows)]
    if details.differences:
        rows = [
            [str(found.row), text_words(found.text), found.label,
             f"{found.teacher} {words.percent(found.teacher_probability, 0)}",
             f"{found.student} {words.percent(found.student_probability, 0)}"]
            for found in details.differences
        ]  # fmt: skip
        parts += [f"## Where teacher and {last} differ most", table(["row", "text", "label", "teacher", last], rows)]
    return parts


def _details(report: Report) -> ClassificationDetails:
    assert isinstance(report.details, ClassificationDetails)
    return report.details
