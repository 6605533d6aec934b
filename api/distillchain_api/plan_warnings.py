"""What is valid in a chain and has no effect: sentences for `distillchain validate`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic.alias_generators import to_camel

from distillchain_api.digests import LABEL_FIELDS
from distillchain_api.graph import Plan
from distillchain_api.resource.label_term import LabelFields
from distillchain_api.vertices import PlannedStage


def warnings_of(plan: Plan) -> list[str]:
    """Sentences, each with the field that it is about."""
    # A control that learns from labels has the training of the stage that it is compared with.
    if any(_learns_from_labels(vertex) for vertex in plan.evidence):
        return []
    spec = plan.chain.spec
    found: list[str] = []
    stages = {stage.name: stage for stage in plan.students}
    for index, stage in enumerate(spec.stages):
        if not _learns_from_labels(stages[stage.name]):
            why = f"stage {stage.name} has distillation.alpha 1"
            found += _without_effect(f"spec.stages[{index}].training", stage.training, why)
    if not any(_learns_from_labels(stage) for stage in plan.students):
        why = "all stages have distillation.alpha 1"
        found += _without_effect("spec.template.training", spec.template.training, why)
    return found


def _learns_from_labels(stage: PlannedStage) -> bool:
    distillation = stage.work_order.distillation
    return not (stage.is_pass or stage.is_verdict) and (distillation is None or distillation.alpha < 1)


def _without_effect(place: str, fields: LabelFields | None, why: str) -> Iterator[str]:
    for name in LABEL_FIELDS:
        if fields is not None and getattr(fields, name):
            yield f"{place}.{to_camel(name)} has no effect: {why}, which leaves no weight to the labels"
