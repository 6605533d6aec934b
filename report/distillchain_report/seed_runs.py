"""Several students of one recipe, from committed stages to the numbers that evidence/paired.py compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distillchain_api.metrics import Metric
from distillchain_report.evidence.paired import SeedRuns
from distillchain_report.load import LoadedStage
from distillchain_report.section import Section
from distillchain_report.statistics import Floats


def contributions_of(stage: LoadedStage, metric: str, section: Section[Any]) -> Floats | None:
    """What each validation row contributes to the metric of a stage's student; None without its predictions."""
    student = stage.answers.student
    return None if student is None else section.contributions(metric, student)


def metric_of(stage: LoadedStage, metric: str) -> float:
    """The metric of a committed stage's student on validation."""
    assert stage.manifest is not None, "only committed stages have a metric"
    return stage.manifest.student.metrics.validation[metric]


def row_unit(metric: Metric) -> float:
    """How much a row contributes to a difference of the metric at most; 0: it has no bound."""
    return 1.0 if metric.is_share else 0.0


def have_same_rows(stages: Sequence[LoadedStage], section: Section[Any]) -> bool:
    """Whether all students answered the same validation rows in the same order."""
    first = stages[0]
    return all(
        stage.rows_sha256 == first.rows_sha256
        and first.answers.student is not None
        and stage.answers.student is not None
        and section.has_same_rows(first.answers.student, stage.answers.student)
        for stage in stages
    )


def seed_runs(stages: Sequence[LoadedStage], metric: str, section: Section[Any]) -> SeedRuns | None:
    """The students of one recipe with one seed each; None where one lacks its predictions, or for fewer than two."""
    parts = [contributions_of(stage, metric, section) for stage in stages]
    found = [each for each in parts if each is not None]
    if len(found) < max(2, len(stages)):
        return None
    return SeedRuns(np.array([metric_of(stage, metric) for stage in stages]), np.stack(found))
