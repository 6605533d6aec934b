"""Metrics of language models with intervals and paired tests, from sums per row. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distillchain_report.evidence.pseudo_values import of_perplexity, of_ratio
from distillchain_report.sections.causal_lm.predictions import Floats, TokenPredictions
from distillchain_report.statistics import (
    BOOTSTRAP_DRAWS,
    PERMUTATIONS,
    SEED,
    Interval,
    percentile_interval,
    share_percentiles,
)

AT_ONCE = 200  # draws of a block; 200 x 100,000 rows of int64 are 160 MB
TIE = 1e-9  # outcomes that differ by rounding alone count as equal


def metric_interval(metric: str, answers: TokenPredictions) -> Interval | None:
    """Bootstrap over rows: the tokens of a row depend on each other. None if the file lacks what the metric needs."""
    sums = _sums(metric, answers)
    if sums is None:
        return None
    dice, rows = np.random.default_rng(SEED), len(answers.tokens)
    values = []
    for _ in range(BOOTSTRAP_DRAWS // AT_ONCE):
        draws = dice.multinomial(rows, np.full(rows, 1 / rows), size=AT_ONCE)
        tokens = draws @ answers.tokens
        # A draw may have no token at all where most rows have none.
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(_metric(metric, draws @ sums, tokens))
    if metric == "teacherAgreement":
        return share_percentiles(np.concatenate(values), rows=int((answers.tokens > 0).sum()))
    return percentile_interval(np.concatenate(values))


def difference(metric: str, teacher: TokenPredictions, student: TokenPredictions) -> float:
    """The student's metric minus the teacher's, on the same rows."""
    total = np.array(student.tokens.sum())
    ours, theirs = (_metric(metric, np.array(it.log_probabilities.sum()), total) for it in (student, teacher))
    return float(ours - theirs)


def contributions(metric: str, answers: TokenPredictions) -> Floats | None:
    """What each row contributes to the metric [rows]; None if the file lacks what the metric needs."""
    sums = _sums(metric, answers)
    if sums is None:
        return None
    if metric == "perplexity":
        return of_perplexity(-sums, answers.tokens)
    return of_ratio(-sums if metric == "tokenCrossEntropy" else sums, answers.tokens)


def permutation_p_value(
    metric: str, teacher: TokenPredictions, student: TokenPredictions, *, permutations: int = PERMUTATIONS
) -> float:
    """Two-sided paired test: the models are swapped in random rows. (b + 1) / (m + 1), Phipson and Smyth 2010."""
    gains = student.log_probabilities - teacher.log_probabilities
    if not gains.any():
        return 1.0
    ours, theirs, tokens = student.log_probabilities.sum(), teacher.log_probabilities.sum(), student.tokens.sum()
    measured = abs(difference(metric, teacher, student)) - TIE
    dice, as_large = np.random.default_rng(SEED), 0
    for start in range(0, permutations, AT_ONCE):
        size = min(AT_ONCE, permutations - start)
        moved = dice.integers(0, 2, size=(size, len(gains)), dtype=np.int8) @ gains
        found = _metric(metric, ours - moved, tokens) - _metric(metric, theirs + moved, tokens)
        as_large += int((np.abs(found) >= measured).sum())
    return (as_large + 1) / (permutations + 1)


def chance_level(metric: str, answers: TokenPredictions) -> float:
    """What the frequencies of the tokens reach."""
    return float(_metric(metric, np.array(answers.unigrams.sum()), np.array(answers.tokens.sum())))


def nats_per_token(log_probabilities: Floats, tokens: NDArray[np.int64]) -> Floats:
    """Cross-entropy of each row [rows]; NaN for a row without tokens."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = -log_probabilities / tokens
    return found


def _sums(metric: str, answers: TokenPredictions) -> Floats | None:
    """What is summed over the rows: log-probabilities, or tokens on which the model agrees with its teacher."""
    if metric != "teacherAgreement":
        return answers.log_probabilities
    return None if answers.agreed is None else answers.agreed.astype(np.float64)


def _metric(metric: str, sums: Floats, tokens: NDArray[np.int64]) -> Floats:
    mean: Floats = sums / tokens
    if metric == "teacherAgreement":
        return mean
    return -mean if metric == "tokenCrossEntropy" else np.exp(np.minimum(-mean, 700.0))
