"""The models of a chain: the root teacher and the students, with intervals and beside the root teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillchain_api.metrics import Metric, retention
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_api.wire.manifest import Manifest, ModelFacts
from distillchain_report.evidence.paired import row_interval
from distillchain_report.load import LoadedStage
from distillchain_report.model import Estimate, ModelReport
from distillchain_report.section import Section
from distillchain_report.seed_runs import row_unit
from distillchain_report.statistics import Interval


@dataclass(frozen=True)
class Root:
    """The root teacher.

    Attributes:
        answers: its predictions on validation, as the section reads them.
        rows_sha256: identifies the validation rows that it was measured on.
    """

    model: ModelReport
    answers: Any | None
    rows_sha256: str


def build_root(stages: Sequence[LoadedStage], metric: Metric, section: Section[Any]) -> Root | None:
    """The teacher at the top, as the first stage measured it, or the result of a first stage without a teacher."""
    first = stages[0]
    if first.manifest is None or first.rows_sha256 is None:
        return None
    # A teacher's predictions on test are not kept, so there is no interval for them.
    facts, answers, on_test = first.manifest.teacher, first.answers.teacher, None
    if facts is None:
        facts, answers, on_test = first.manifest.student, first.answers.student, first.answers.on_test
    # Named like stage zero in both cases: readers look for `teacher`.
    model = _model(TEACHER_STAGE, facts, answers, on_test, first.manifest, metric, section)
    return Root(model, answers, first.rows_sha256)


def build_student(stage: LoadedStage, root: Root | None, metric: Metric, section: Section[Any]) -> ModelReport:
    """The student of a committed stage, beside the root teacher."""
    manifest = stage.manifest
    assert manifest is not None
    answers = stage.answers
    model = _model(
        stage.wanted.name, manifest.student, answers.student, answers.on_test, manifest, metric, section
    ).model_copy(update={"pretrained": manifest.pretrained})
    if root is None:
        return model
    return model.model_copy(
        update={
            "compression": root.model.parameters / model.parameters,
            "retention": _retention(model, stage, root, metric, section),
        }
    )


def _model(
    name: str,
    facts: ModelFacts,
    answers: Any | None,
    on_test: Any | None,
    manifest: Manifest,
    metric: Metric,
    section: Section[Any],
) -> ModelReport:
    def estimate(name: str, value: float, split: str, answers: Any | None) -> Estimate:
        # Without the split's rows there is no interval, but the value stands.
        rows = manifest.data[split].rows if split in manifest.data else 0
        low, high = section.interval(name, value, rows=rows, answers=answers) or (None, None)
        return Estimate(value=value, low=low, high=high)

    metrics = {name: estimate(name, value, "validation", answers) for name, value in facts.metrics.validation.items()}
    test = facts.metrics.test
    return ModelReport(
        name=name,
        parameters=facts.parameters,
        size_bytes=facts.size_bytes,
        metric=metrics[metric.name],
        metrics=metrics,
        test=estimate(metric.name, test[metric.name], "test", on_test) if test else None,
        compression=1.0,
        examples_per_second=facts.examples_per_second,
        latency_p50_ms=facts.latency_p50_ms,
        latency_p95_ms=facts.latency_p95_ms,
    )


def _retention(
    model: ModelReport, stage: LoadedStage, root: Root, metric: Metric, section: Section[Any]
) -> Estimate | None:
    """The share of the root teacher's metric that a student keeps; None if they were measured on different rows."""
    # On other rows the difference may come from the rows instead of the models.
    if stage.rows_sha256 != root.rows_sha256:
        return None
    value = retention(model.metric.value, root.model.metric.value, metric)
    if value is None:
        return None
    student, teacher = stage.answers.student, root.answers
    interval = None
    if student is not None and teacher is not None:
        interval = section.retention_interval(metric.name, teacher=teacher, student=student)
        if interval and interval[0] == interval[1]:
            assert stage.manifest is not None
            interval = _interval_of_alike(value, root.model.metric, metric, stage.manifest.data["validation"].rows)
    low, high = interval or (None, None)
    return Estimate(value=value, low=low, high=high)


def _interval_of_alike(value: float, teacher: Estimate, metric: Metric, rows: int) -> Interval:
    """The interval of a kept share where all bootstrap draws give the same one, as if it were certain.

    It is so if both models answer all rows alike, or the student none rightly. A few other rows could differ.
    """
    low, high = row_interval(np.zeros(rows), 0.0, row_unit=row_unit(metric))
    # A metric that has a retention is at most 1.
    return max(value + low / teacher.value, 0.0), min(value + high / teacher.value, 1 / teacher.value)
