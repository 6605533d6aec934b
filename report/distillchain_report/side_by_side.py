"""Models of several chains side by side: metric, paired difference, size, speed, cost, and how the recipes differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillchain_api.base import Document
from distillchain_api.metrics import metric_named
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_api.tasks import metrics_of
from distillchain_report.evidence.paired import row_interval
from distillchain_report.load import LoadedStage
from distillchain_report.model import Estimate, MetricFacts, ModelReport, Report
from distillchain_report.section import Section
from distillchain_report.sections import section_of
from distillchain_report.seed_runs import row_unit

NOT_IN_RECIPE = "-"


@dataclass(frozen=True)
class Entrant:
    """One of the models.

    Attributes:
        label: as the user named it.
        report: on its chain, up to its stage.
        last: its stage.
    """

    label: str
    report: Report
    last: LoadedStage


class PairedDifference(Document):
    """A model minus the first one, on the same rows."""

    value: float
    low: float
    high: float
    """95 % interval for other rows; other seeds are not covered."""
    p_value: float
    """Two-sided paired permutation test."""


class ComparedModel(Document):
    """One of the models."""

    label: str
    chain: str
    stage: str
    checkpoint: str
    metric: Estimate
    """The metric of the chain, on validation."""
    other_metric: MetricFacts | None = None
    """That metric, if it is not the one of the first model."""
    test: Estimate | None = None
    difference: PairedDifference | None = None
    """From the first model; None for the first one."""
    not_compared: str | None = None
    """Why there is no difference."""
    parameters: int
    size_bytes: int
    examples_per_second: float | None = None
    latency_p50_ms: float | None = None
    """Of one row at batch size 1."""
    device: str | None = None
    """On which both were measured."""
    gpu_hours: float
    """Of all stages down to this one, whoever trained them."""
    hours: float
    """The same in wall hours."""
    cost: float | None = None
    """GPU-hours times the price; None without a price."""


class RecipeLine(Document):
    """A field in which the recipes differ."""

    field: str
    values: list[str]
    """One for each model; `-` where a recipe does not have the field."""


class SideBySide(Document):
    """Several models beside each other."""

    comparison: int = 1
    metric: MetricFacts
    models: list[ComparedModel]
    recipe: list[RecipeLine]
    missing: list[str] = []
    """What could not be read, and why."""

    @property
    def device_note(self) -> str:
        """Which models were measured on which device; empty if it was the same one."""
        devices = [(model.label, model.device or "an unknown device") for model in self.models]
        if len({device for _, device in devices}) == 1:
            return ""
        listed = ", ".join(f"{label} on {device}" for label, device in devices)
        return f"Speed and latency were not measured on the same device: {listed}"


def compare(entrants: Sequence[Entrant], *, price_per_gpu_hour: float | None = None) -> SideBySide:
    """Compares committed models; differences are from the first one."""
    first = entrants[0]
    models = []
    for entrant in entrants:
        model = entrant.report.last.model if entrant.report.last else None
        assert model is not None, "only committed stages are compared"
        pair = None if entrant is first else _against(first, entrant)
        described = _described(entrant, model, pair, price_per_gpu_hour)
        other = entrant.report.metric if entrant.report.metric != first.report.metric else None
        models.append(described.model_copy(update={"other_metric": other}))
    return SideBySide(
        metric=first.report.metric,
        models=models,
        recipe=_differences(entrants),
        missing=[f"{entrant.label}: {sentence}" for entrant in entrants for sentence in entrant.report.missing],
    )


def _described(
    entrant: Entrant, model: ModelReport, pair: PairedDifference | str | None, price: float | None
) -> ComparedModel:
    report, totals = entrant.report, entrant.report.totals
    return ComparedModel(
        label=entrant.label,
        chain=report.chain,
        stage=entrant.last.wanted.name,
        checkpoint=entrant.last.checkpoint,
        metric=model.metric,
        test=model.test,
        difference=pair if isinstance(pair, PairedDifference) else None,
        not_compared=pair if isinstance(pair, str) else None,
        parameters=model.parameters,
        size_bytes=model.size_bytes,
        examples_per_second=model.examples_per_second,
        latency_p50_ms=model.latency_p50_ms,
        device=entrant.last.manifest.environment.get("device") if entrant.last.manifest else None,
        gpu_hours=totals.gpu_hours,
        hours=totals.elapsed_s / 3600,
        cost=None if price is None else totals.gpu_hours * price,
    )


def _against(first: Entrant, other: Entrant) -> PairedDifference | str:
    """The difference of two models, or why there is none."""
    if other.report.metric != first.report.metric:
        return f"its metric is {other.report.metric.name}, and {first.label} has {first.report.metric.name}"
    if other.last.rows_sha256 != first.last.rows_sha256:
        return f"it was measured on other validation rows than {first.label}"
    section: Section[Any] = section_of(other.report.task or {})
    theirs, ours = first.last.answers.student, other.last.answers.student
    if theirs is None or ours is None:
        return "the predictions of one of them cannot be read"
    metric = metric_named(first.report.metric.name, metrics_of(first.report.task or {}))
    paired = section.compare(metric.name, teacher=theirs, student=ours)
    parts = [section.contributions(metric.name, answers) for answers in (ours, theirs)]
    if paired is None or parts[0] is None or parts[1] is None:
        return f"its predictions are for other rows than the predictions of {first.label}"
    ends = row_interval(parts[0] - parts[1], paired.difference, row_unit=row_unit(metric))
    low, high = metric.possible_differences(*ends)
    return PairedDifference(value=paired.difference, low=low, high=high, p_value=paired.p_value)


def _differences(entrants: Sequence[Entrant]) -> list[RecipeLine]:
    recipes = [_recipe(entrant) for entrant in entrants]
    # In the order of the first recipe that has a field.
    fields = list(dict.fromkeys(field for recipe in recipes for field in recipe))
    lines = [
        RecipeLine(field=field, values=[recipe.get(field, NOT_IN_RECIPE) for recipe in recipes]) for field in fields
    ]
    return [line for line in lines if len(set(line.values)) > 1]


def _recipe(entrant: Entrant) -> dict[str, str]:
    """Field by field, with the stages down to this model as the first."""
    manifest = entrant.last.manifest
    assert manifest is not None
    root = manifest.teacher.source if manifest.teacher else manifest.student.source
    # A fine-tuned root teacher is a stage itself, under this name.
    taught = [stage.name for stage in entrant.report.stages if stage.name != TEACHER_STAGE]
    flat = {"stages": " -> ".join([TEACHER_STAGE, *taught]), "teacher": root}
    _flatten(manifest.recipe, "", flat)
    return flat


def _flatten(value: Any, path: str, into: dict[str, str]) -> None:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _flatten(inner, f"{path}.{key}" if path else str(key), into)
    else:
        into[path] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
