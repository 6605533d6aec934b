"""Tests whether a tagger beats guessing. Pure."""

from __future__ import annotations

import numpy as np

from distillchain_api.metrics import format_share
from distillchain_report.sections.token_classification.predictions import Predictions
from distillchain_report.sections.token_classification.scores import shuffled_f1

CHANCE_SHUFFLES = 200  # enough for a 95 % quantile; about two seconds for 100,000 words


def doubt_of(answers: Predictions, *, split: str) -> str | None:
    """Why a tagger may not have learned the task; None where its entities beat chance.

    Judged by entity F1, whatever the metric of the task: with tags O alone, token accuracy is high already. Chance are
    the same tags in random order; a tagger must exceed what 5 % of the orders exceed.
    """
    f1 = answers.counts.f1
    if not answers.counts.predicted.any():
        return f"it tags every word of {answers.sentences} {split} sentences as O, so its entity F1 is 0"
    needed = float(np.quantile(shuffled_f1(answers, CHANCE_SHUFFLES), 0.95, method="higher"))
    if f1 > needed:
        return None
    return (
        f"entity F1 {format_share(f1, needed)} on {answers.sentences} {split} sentences could be luck: the same tags "
        f"in random order reach {format_share(needed)} in 1 of 20 cases"
    )
