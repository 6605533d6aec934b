"""What the report shows of a tagger: its kinds of entities, its kinds of errors, and the sentences with most errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from distillchain_api.base import Document
from distillchain_api.wire.records import EXAMPLES
from distillchain_report.model import Estimate, SectionDetails
from distillchain_report.sections.token_classification.entities import (
    Entities,
    EntityCounts,
    Ints,
    find_entities,
    shared_entities,
)
from distillchain_report.sections.token_classification.predictions import Predictions
from distillchain_report.sections.token_classification.scores import Ratio, interval

FEW_ENTITIES = 5  # of a kind: a good student may miss this kind by bad luck, so never finding it raises no doubt
NAMED_KINDS = 5  # in a sentence


class KindReport(Document):
    """One kind of entity on validation."""

    kind: str
    entities: int
    """In the labels."""
    predicted: int
    """By the student, right or wrong."""
    recall: Estimate | None = None
    """None: validation has none of this kind."""
    precision: Estimate | None = None
    """None: the kind is never predicted."""
    f1: Estimate | None = None
    """None: the kind neither occurs nor is predicted."""


class ErrorReport(Document):
    """The student's errors on validation, by what is wrong."""

    other_kind: int
    """Entities whose words are found, as another kind."""
    other_words: int
    """Entities of which only some words are found, or more words than they have."""
    missed: int
    """Entities none of whose words are found."""
    invented: int
    """Predicted entities without a word that is in an entity."""


class Mention(Document):
    """An entity in a sentence."""

    words: str
    """Its words, or their numbers where the sentence was not kept."""
    kind: str


class WrongSentence(Document):
    """A validation sentence on which the student errs."""

    row: int
    words: list[str] | None = None
    labels: list[Mention]
    teacher: list[Mention] | None = None
    """None: the root teacher was not measured on the same sentences."""
    student: list[Mention]


class TaggingDetails(SectionDetails):
    """The last committed student on validation."""

    kinds: list[KindReport]
    errors: ErrorReport
    sentences: list[WrongSentence] = []

    @property
    def doubts(self) -> list[str]:
        """Kinds that the student never predicts, although validation has more than a few entities of them."""
        never = [found.kind for found in self.kinds if not found.predicted and found.entities >= FEW_ENTITIES]
        if not never:
            return []
        names = ", ".join(never[:NAMED_KINDS]) + (", ..." if len(never) > NAMED_KINDS else "")
        occurring = sum(found.entities > 0 for found in self.kinds)
        return [f"never predicts {len(never)} of {occurring} kinds of entities of validation: {names}"]


def build_details(student: Predictions, *, root: Predictions | None, texts: Mapping[int, list[str]]) -> TaggingDetails:
    """The details of a student; `root` are the root teacher's predictions on the same sentences."""
    return TaggingDetails(
        kinds=_kinds(student),
        errors=count_errors(student),
        sentences=[_sentence(row, student, root, texts.get(row)) for row in worst_sentences(student.counts)],
    )


def worst_sentences(counts: EntityCounts, *, most: int = EXAMPLES) -> list[int]:
    """The sentences with the most wrong entities, missed or predicted, the worst first; of equal ones the earlier."""
    wrong = (counts.true + counts.predicted - 2 * counts.right).sum(1)
    worst = np.argsort(-wrong, kind="stable")[:most]
    return [int(row) for row in worst if wrong[row]]


def count_errors(answers: Predictions) -> ErrorReport:
    """The errors by what is wrong."""
    theirs = find_entities(answers.truth, answers.starts, answers.scheme)
    ours = find_entities(answers.predicted, answers.starts, answers.scheme)
    right = len(shared_entities(theirs, ours))
    same_words = len(shared_entities(_without_kind(theirs), _without_kind(ours)))
    touched = int(_touches(theirs, ours, len(answers.truth)).sum())
    return ErrorReport(
        other_kind=same_words - right,
        other_words=touched - same_words,
        missed=len(theirs) - touched,
        invented=len(ours) - int(_touches(ours, theirs, len(answers.truth)).sum()),
    )


def _without_kind(entities: Entities) -> Entities:
    return Entities(entities.start, entities.end, np.zeros_like(entities.kind))


def _touches(entities: Entities, others: Entities, words: int) -> Ints:
    """1 for each entity that has a word in common with one of the others [entities]."""
    # +1 where an entity begins and -1 behind its end: the running sum is 1 within entities.
    marks = np.zeros(words + 1, dtype=np.int64)
    marks[others.start] += 1
    marks[others.end] -= 1
    covered = np.concatenate([[0], np.cumsum(np.cumsum(marks))])
    found: Ints = (covered[entities.end] > covered[entities.start]).astype(np.int64)
    return found


def _kinds(student: Predictions) -> list[KindReport]:
    counts = student.counts
    found = []
    for index, kind in enumerate(student.scheme.kinds):
        true, predicted, right = (column[:, index] for column in (counts.true, counts.predicted, counts.right))
        found.append(
            KindReport(
                kind=kind,
                entities=int(true.sum()),
                predicted=int(predicted.sum()),
                recall=_estimate(Ratio(right, true)),
                precision=_estimate(Ratio(right, predicted)),
                f1=_estimate(Ratio(2 * right, true + predicted)),
            )
        )
    return found


def _estimate(ratio: Ratio) -> Estimate | None:
    """None: a share of nothing."""
    if not ratio.below.any():
        return None
    low, high = interval(ratio)
    return Estimate(value=ratio.value, low=low, high=high)


def _sentence(row: int, student: Predictions, root: Predictions | None, words: list[str] | None) -> WrongSentence:
    return WrongSentence(
        row=row,
        words=words,
        labels=_mentions(student.truth, student, row, words),
        teacher=None if root is None else _mentions(root.predicted, root, row, words),
        student=_mentions(student.predicted, student, row, words),
    )


def _mentions(tags: Ints, answers: Predictions, row: int, words: Sequence[str] | None) -> list[Mention]:
    first, end = answers.starts[row : row + 2]
    own = tags[first:end]
    found = find_entities(own, np.array([0, len(own)]), answers.scheme)
    return [
        Mention(words=_named(int(start), int(stop), words), kind=answers.scheme.kinds[kind])
        for start, stop, kind in zip(found.start, found.end, found.kind, strict=True)
    ]


def _named(start: int, stop: int, words: Sequence[str] | None) -> str:
    # A long sentence is kept in part; see records.EXAMPLE_CHARS.
    if words is not None and stop <= len(words):
        return " ".join(words[start:stop])
    return f"word {start + 1}" if stop == start + 1 else f"words {start + 1} to {stop}"
