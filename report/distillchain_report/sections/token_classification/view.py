"""How the section is written: values for its HTML template, and its Markdown."""

from __future__ import annotations

from typing import Any

from distillchain_report import words
from distillchain_report.markdown_text import table
from distillchain_report.model import Report
from distillchain_report.sections.token_classification.details import (
    ErrorReport,
    KindReport,
    Mention,
    TaggingDetails,
    WrongSentence,
)

LISTED_KINDS = 30


def template_values(report: Report) -> dict[str, Any]:
    """Values for section.html."""
    details = _details(report)
    return {
        "kinds": weakest_kinds(details),
        "error_rows": error_rows(details.errors),
        "sentence_words": sentence_words,
        "mention_words": mention_words,
    }


def weakest_kinds(details: TaggingDetails) -> list[KindReport]:
    """All kinds if they are few, otherwise those with the lowest F1; a kind without entities comes last."""
    if len(details.kinds) <= LISTED_KINDS:
        return details.kinds
    # 2.0 is above every F1.
    return sorted(details.kinds, key=lambda found: found.f1.value if found.f1 else 2.0)[:LISTED_KINDS]


def error_rows(errors: ErrorReport) -> list[tuple[str, int]]:
    """What is wrong, and how often."""
    return [
        ("right words, other kind", errors.other_kind),
        ("some of the words, or too many", errors.other_words),
        ("missed", errors.missed),
        ("predicted where there is none", errors.invented),
    ]


def sentence_words(sentence: WrongSentence) -> str:
    """The words of a sentence."""
    return "(its words were not kept)" if sentence.words is None else " ".join(sentence.words)


def mention_words(mentions: list[Mention] | None) -> str:
    """`New York (location), Smith (person)`."""
    if mentions is None:
        return words.NOTHING
    return ", ".join(f"{mention.words} ({mention.kind})" for mention in mentions) or "none"


def markdown(report: Report) -> list[str]:
    """The section as Markdown blocks."""
    details = _details(report)
    last = report.last.name if report.last else ""
    head = [
        *("kind", "entities", "predicted", "recall", "95 % interval", "precision", "95 % interval"),
        *("F1", "95 % interval"),
    ]
    kind_rows = [
        [found.kind, str(found.entities), str(found.predicted)]
        + [cell for estimate in (found.recall, found.precision, found.f1) for cell in words.share_cells(estimate)]
        for found in weakest_kinds(details)
    ]
    parts = [
        f"## Entities of {last}",
        table(head, kind_rows),
        table(["error", "entities"], [[name, str(count)] for name, count in error_rows(details.errors)]),
    ]
    if details.sentences:
        rows = [
            [str(found.row), sentence_words(found), *map(mention_words, (found.labels, found.teacher, found.student))]
            for found in details.sentences
        ]
        parts += [f"## Sentences on which {last} errs most", table(["row", "words", "labels", "teacher", last], rows)]
    return parts


def _details(report: Report) -> TaggingDetails:
    assert isinstance(report.details, TaggingDetails)
    return report.details
