"""What the report shows of a language model: the rows that it has lost most of, beside the root teacher."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distillchain_api.base import Document
from distillchain_report.model import SectionDetails
from distillchain_report.sections.causal_lm.predictions import TokenPredictions
from distillchain_report.sections.causal_lm.scores import nats_per_token

MOST_ROWS = 20


class LostRow(Document):
    """A validation row that the root teacher predicts much better than the last committed student."""

    row: int
    text: list[str] | None = None
    tokens: int
    teacher: float
    """Nats per token."""
    student: float
    """Nats per token."""


class LanguageDetails(SectionDetails):
    """The last committed student on validation."""

    rows: int
    tokens: int
    empty_rows: int
    """Rows without a token to predict: their completion is cut off."""
    better_rows: int | None = None
    """Rows that the student predicts better than the root teacher."""
    lost: list[LostRow] = []


def build_details(
    student: TokenPredictions, *, root: TokenPredictions | None, texts: Mapping[int, list[str]]
) -> LanguageDetails:
    """The details of a student; `root` are the root teacher's answers on the same rows."""
    found = LanguageDetails(
        rows=len(student.tokens), tokens=int(student.tokens.sum()), empty_rows=int((student.tokens == 0).sum())
    )
    if root is None:
        return found
    loss = root.log_probabilities - student.log_probabilities
    ours, theirs = (nats_per_token(it.log_probabilities, student.tokens) for it in (student, root))
    # By row and not by token: a long row that is lost a little everywhere counts as well.
    worst = [int(row) for row in np.argsort(-loss, kind="stable")[:MOST_ROWS] if loss[row] > 0]
    lost = [
        LostRow(
            row=row,
            text=texts.get(row),
            tokens=int(student.tokens[row]),
            teacher=float(theirs[row]),
            student=float(ours[row]),
        )
        for row in worst
    ]
    return found.model_copy(update={"better_rows": int((loss < 0).sum()), "lost": lost})
