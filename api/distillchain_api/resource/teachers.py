"""Several teachers for one student: the fields of `stages[].teachers`, and what they must be.

The stage before must be one of them. So each stage still needs all stages before it, and `gate.maxDrop`, `fromTeacher`
and the report compare a student with the stage before, as with one teacher.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Protocol, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, Fault, expected, nearest
from distillchain_api.resource.distillation import (
    Distillation,
    DistillationOverrides,
    TemplateDistillation,
    resolve_distillation,
)
from distillchain_api.task import Task
from distillchain_api.values import SourceUri, StageName

ROOT = "teacher"
"""How `teachers[].stage` names the root teacher: `spec.teacher`, or the stage that `teacher.fineTune` adds."""
MAX_TEACHERS = 8
WEIGHT_DECIMALS = 12  # of a share: 1/3 has the same digest as 2/6

TeacherWeight = Annotated[
    float,
    Field(
        ge=0.001,
        le=1000,
        # The API server compares a whole number with the whole part of a bound, so `minimum` alone would accept 0.
        json_schema_extra=rules(cel("self >= 0.001", "expected a number from 0.001 to 1000")),
    ),
    Expect("a number from 0.001 to 1000", "1.0 is the default"),
]


class StageTeacher(Document):
    """One of several teachers of a stage: `stage` or `model`."""

    stage: StageName | None = None
    """An earlier stage, or `teacher`: the root teacher, fine-tuned if the chain does that."""
    model: SourceUri | None = None
    """A checkpoint fine-tuned on the task that is not part of the chain."""
    weight: TeacherWeight = 1.0
    """Its share of the mean is this number divided by the sum of all weights."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.stage is None) == (self.model is None):
            got = "both" if self.stage else "none"
            raise fault("", f"got {got}, expected one of stage and model")
        return self

    model_config = {
        "json_schema_extra": rules(cel("has(self.stage) != has(self.model)", "expected one of stage and model"))
    }


Teachers = Annotated[
    list[StageTeacher], Field(min_length=1, max_length=MAX_TEACHERS), Expect("a list of 1 to 8 teachers")
]


class TaughtStage(Protocol):
    """A stage, as far as its teachers are concerned."""

    @property
    def name(self) -> str:
        """Of the stage."""

    @property
    def teachers(self) -> list[StageTeacher] | None:
        """None: the stage before alone."""

    @property
    def distillation(self) -> DistillationOverrides:
        """What the stage states itself."""


def shares_of(teachers: Sequence[StageTeacher]) -> list[float]:
    """The weights, divided by their sum."""
    total = sum(teacher.weight for teacher in teachers)
    return [round(teacher.weight / total, WEIGHT_DECIMALS) for teacher in teachers]


def teachers_faults(
    task: Task, template: TemplateDistillation, stages: Sequence[TaughtStage], *, root_model: str | None
) -> Iterator[Fault]:
    """What is wrong with the teachers of all stages. Fields are relative to the spec.

    Args:
        root_model: URI of the root teacher; None where the chain fine-tunes it, so that it is another model.
    """
    for index, stage in enumerate(stages):
        if stage.teachers is None:
            continue
        place, earlier = f"stages[{index}].teachers", [ROOT, *(other.name for other in stages[:index])]
        found = list(_name_faults(stage.teachers, place, earlier, stages[index:], root_model))
        yield from found
        named = [teacher.stage for teacher in stage.teachers]
        if not found and earlier[-1] not in named:
            stated = " and ".join(teacher.stage or str(teacher.model) for teacher in stage.teachers)
            yield Fault(
                place,
                f"got {stated}, expected the stage before among them; add {{stage: {earlier[-1]}}}, because each stage "
                "of a chain learns from the one before",
            )
        if len(stage.teachers) > 1:
            yield from _use_faults(resolve_distillation(task, template, stage.distillation), place)


def _name_faults(
    teachers: Sequence[StageTeacher],
    place: str,
    earlier: Sequence[str],
    later: Sequence[TaughtStage],
    root_model: str | None,
) -> Iterator[Fault]:
    seen: set[str] = set()
    for number, teacher in enumerate(teachers):
        field = f"{place}[{number}].{'stage' if teacher.stage else 'model'}"
        name = teacher.stage or teacher.model or ""
        if teacher.stage is not None and teacher.stage not in earlier:
            own, *others = (stage.name for stage in later)
            if teacher.stage == own:
                yield Fault(field, expected(own, "an earlier stage", "a stage cannot teach itself"))
            elif teacher.stage in others:
                yield Fault(field, expected(teacher.stage, "an earlier stage", "this one runs later; name another"))
            else:
                yield Fault(field, f"no earlier stage; {nearest(teacher.stage, earlier)}")
        elif teacher.model is not None and teacher.model == root_model:
            yield Fault(field, expected(name, "another model", "write stage: teacher for the root teacher"))
        elif name in seen:
            yield Fault(field, expected(name, "each teacher once", "add up its weights"))
        seen.add(name)


def _use_faults(distillation: Distillation, place: str) -> Iterator[Fault]:
    """What several teachers cannot be combined with."""
    if distillation.alpha == 0:
        yield Fault(place, "expected none with distillation.alpha 0, because then only labels count; remove them")
    if distillation.hidden is not None:
        yield Fault(
            place,
            "expected one teacher with distillation.hidden, which compares hidden states of one model; remove the "
            "others, or set hidden.weight: 0",
        )
