"""What a student learns from its teacher: the fields of the spec, and what they mean for one stage.

An objective's own numbers (`parameters`) are stated beside it and belong to it alone. A field that the chosen objective
does not use is refused: it would look like a setting and change nothing.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, rules
from distillchain_api.faults import Expect, Fault, error_of, expected
from distillchain_api.objectives import BY_OUTPUTS, DEFAULTS, WITHOUT_TEMPERATURE, Objective, ObjectiveParameters
from distillchain_api.resource.hidden import HiddenTerm
from distillchain_api.task import Task
from distillchain_api.tasks import task_types

Temperature = Annotated[float, Field(gt=0, le=100), Expect("a temperature above 0 and at most 100", "1.0 is neutral")]
Alpha = Annotated[
    float, Field(ge=0, le=1), Expect("a share from 0 (labels only) to 1 (teacher only)", "1.0 is the published recipe")
]


def _alias(parameter: str) -> str:
    """The name of a parameter in the spec."""
    return ObjectiveParameters.model_fields[parameter].alias or parameter


def _objective_rules() -> Iterator[dict[str, str]]:
    """The CEL form of `_objective_faults`."""
    for objective, parameters in DEFAULTS.items():
        stated = " || ".join(f"has(self.parameters.{_alias(name)})" for name in parameters)
        names = " and ".join(_alias(name) for name in parameters)
        yield cel(
            f"!has(self.parameters) || !({stated}) || (has(self.objective) && self.objective == '{objective}')",
            f"parameters: expected {names} only with objective {objective}; state that objective here, or remove it",
            fieldPath=".parameters",
        )
    for objective in WITHOUT_TEMPERATURE:
        yield cel(
            f"!has(self.objective) || self.objective != '{objective}' || !has(self.temperature) || "
            "self.temperature == 1.0",
            f"temperature: expected 1.0 with objective {objective}, which has no temperature; remove it",
            fieldPath=".temperature",
        )


def _objective_faults(stated: StatedDistillation) -> Iterator[Fault]:
    """What is wrong with fields that stand beside each other."""
    given = stated.parameters.model_dump(exclude_none=True) if stated.parameters else {}
    for owner, parameters in DEFAULTS.items():
        for name in parameters:
            if name in given and owner != stated.objective:
                beside = f"it only with objective {owner}"
                remedy = f"state that objective here, or remove {_alias(name)}"
                yield Fault(f"parameters.{_alias(name)}", expected(given[name], beside, remedy))
    if stated.objective in WITHOUT_TEMPERATURE and stated.temperature not in (None, 1.0):
        yield _no_temperature("temperature", stated.temperature, str(stated.objective))


def _no_temperature(field: str, value: float | None, objective: str) -> Fault:
    return Fault(field, expected(value, f"1.0 with objective {objective}, which has no temperature", "remove it"))


class StatedDistillation(Document):
    """What the template or a stage states."""

    objective: Objective | None = None
    """Loss between student and teacher."""
    parameters: ObjectiveParameters | None = None
    """Numbers of `objective`."""
    temperature: Temperature | None = None
    """Divisor of both logits."""
    alpha: Alpha | None = None
    """Share of the teacher's loss; the rest is the loss on the labels."""
    hidden: HiddenTerm | None = None
    """A loss on hidden states."""

    @model_validator(mode="after")
    def _fits_the_objective(self) -> Self:
        if faults := list(_objective_faults(self)):
            raise error_of(faults)
        return self

    model_config = {"json_schema_extra": rules(*_objective_rules())}


class DistillationOverrides(StatedDistillation):
    """Distillation values of one stage; fields that are not set come from the template."""

    parameters: ObjectiveParameters | None = None
    """Numbers of `objective`; a stage that sets its own `objective` does not inherit the template's."""
    hidden: HiddenTerm | None = None
    """A loss on hidden states; replaces the template's as a whole."""


class TemplateDistillation(StatedDistillation):
    """loss = (1 - alpha) * label loss + alpha * objective(student, teacher) + hidden.weight * hidden.objective."""

    objective: Objective | None = None
    """Loss between student and teacher; empty: SoftTargets, temperature^2 * KL(teacher || student) (Hinton et al.
    2015), and for Regression LogitMSE."""
    temperature: Temperature = 1.0
    """Divisor of both logits."""
    alpha: Alpha = 1.0
    """Share of the teacher's loss; the rest is the loss on the labels."""
    hidden: HiddenTerm | None = None
    """A loss on hidden states, added to the others. The teacher runs in every step and must have the same tokenizer."""


class Distillation(Document):
    """What one stage learns from its teacher, once template, stage and task have come together."""

    objective: Objective = "SoftTargets"
    """Loss between student and teacher."""
    parameters: ObjectiveParameters | None = None
    """The objective's numbers that differ from its defaults."""
    temperature: Temperature = 1.0
    """Divisor of both logits."""
    alpha: Alpha = 1.0
    """Share of the teacher's loss; the rest is the loss on the labels."""
    hidden: HiddenTerm | None = None
    """A loss on hidden states, added to the others; none with weight 0."""

    @property
    def all_parameters(self) -> dict[str, float]:
        """The objective's numbers in snake case, defaults included."""
        stated = self.parameters.model_dump(exclude_none=True) if self.parameters else {}
        return {**DEFAULTS.get(self.objective, {}), **stated}


def resolve_distillation(task: Task, template: TemplateDistillation, stage: DistillationOverrides) -> Distillation:
    """What a stage learns from its teacher."""
    objective = stage.objective or template.objective or task.default_objective
    stated = stage.parameters if stage.objective else template.parameters
    # A default that is written out counts as left out, as everywhere in a digest.
    defaults = DEFAULTS.get(objective, {})
    given = stated.model_dump(exclude_none=True) if stated else {}
    own = {name: value for name, value in given.items() if value != defaults.get(name)}
    # The template's temperature is meant for the stages whose objective has one.
    temperature = 1.0 if objective in WITHOUT_TEMPERATURE else stage.temperature or template.temperature
    hidden = template.hidden if stage.hidden is None else stage.hidden
    return Distillation(
        objective=objective,
        parameters=ObjectiveParameters(**own) if own else None,
        temperature=temperature,
        alpha=template.alpha if stage.alpha is None else stage.alpha,
        hidden=hidden if hidden is not None and hidden.weight > 0 else None,
    )


def distillation_faults(
    task: Task, template: TemplateDistillation, stages: Sequence[DistillationOverrides]
) -> Iterator[Fault]:
    """What does not fit the task, or not the objective that a stage inherits. Fields are relative to the spec."""
    accepted = BY_OUTPUTS[task.outputs]
    blocks: dict[str, StatedDistillation] = {"template.distillation": template}
    blocks |= {f"stages[{index}].distillation": stage for index, stage in enumerate(stages)}
    for field, stated in blocks.items():
        if stated.objective is not None and stated.objective not in accepted:
            yield Fault(
                f"{field}.objective",
                expected(
                    stated.objective,
                    f"{' or '.join(accepted)} for task {task.type}",
                    "the outputs of this task do not fit the others",
                ),
            )
        inherited = template.objective or task.default_objective
        if stated.objective is None and inherited in WITHOUT_TEMPERATURE and stated.temperature not in (None, 1.0):
            yield _no_temperature(f"{field}.temperature", stated.temperature, inherited)


def objective_rules(outputs: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The objectives that each task accepts, as CEL rules of the spec.

    Args:
        outputs: what the outputs of each task type are (Task.outputs).
    """
    for kind, accepted in BY_OUTPUTS.items():
        types = sorted(name for name, own in outputs.items() if own == kind)
        # A rule that allows everything would only cost the API server time.
        if not types or len(accepted) == len(typing.get_args(Objective)):
            continue
        fits = "in [" + ", ".join(f"'{name}'" for name in accepted) + "]"
        template, stage = "self.template.distillation", "stage.distillation"
        message = f"distillation.objective: task {' and '.join(types)} expects {' or '.join(accepted)}"
        is_task = f"self.task.type in {types}"
        yield cel(
            f"!({is_task}) || !has(self.template) || !has({template}) || !has({template}.objective) || "
            f"{template}.objective {fits}",
            message,
            fieldPath=".template.distillation.objective",
        )
        yield cel(
            f"!({is_task}) || self.stages.all(stage, !has({stage}) || !has({stage}.objective) || "
            f"{stage}.objective {fits})",
            message,
            fieldPath=".stages",
        )


OBJECTIVE_RULES = list(objective_rules({name: task.outputs for name, task in task_types().items()}))
"""For ChainSpec."""
