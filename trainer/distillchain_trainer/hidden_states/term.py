"""The hidden-state term of a training: what it reads of student and teacher, and the parameters that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillchain_api.resource.hidden import HiddenMSE, HiddenTerm, ValueRelation
from distillchain_trainer.engine.device.calling import call_model
from distillchain_trainer.errors import CheckpointInvalid
from distillchain_trainer.hidden_states.hidden_mse import hidden_mse, new_projection, uniform_layers
from distillchain_trainer.hidden_states.inside_models import Recorder, layers_of, projection_of
from distillchain_trainer.hidden_states.value_relation import common_heads, relation_loss

States = dict[str, Tensor]
PROJECTION = "projection"


@dataclass(frozen=True)
class Models:
    """Student and teacher, and how messages name them."""

    student: Any
    teacher: Any
    student_name: str
    teacher_name: str
    field: str
    """Of the spec: `spec.stages[1].distillation.hidden`."""


class HiddenStates(nn.Module):
    """See ExtraLoss in engine/training/step.py. Its own parameters are trained with the student and are not part of it.

    Args:
        loss: of the states of student and teacher and the mask of real tokens, [rows].
    """

    def __init__(
        self,
        teacher: Any,
        weight: float,
        recorders: tuple[Recorder, Recorder],
        loss: Callable[[States, States, Tensor | None], Tensor],
        parameters: dict[str, Tensor],
    ) -> None:
        super().__init__()
        # In a list: as a module of this one, the teacher would be trained, saved and moved with it.
        self._teacher = [teacher.eval()]
        self._weight = weight
        self._of_student, self._of_teacher = recorders
        self._loss = loss
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    @property
    def module(self) -> nn.Module:
        """Itself: it holds the parameters."""
        return self

    def observe(self, inputs: dict[str, Tensor]) -> None:
        """Runs the teacher on what the student has just read."""
        with torch.no_grad():
            call_model(self._teacher[0], inputs)

    def losses(self, inputs: dict[str, Tensor]) -> Tensor:
        """The weighed loss of each row [rows], after `observe`."""
        mask = inputs.get("attention_mask")
        return self._weight * self._loss(
            self._of_student.take(), self._of_teacher.take(), None if mask is None else mask.bool()
        )

    def close(self) -> None:
        """Removes the hooks from student and teacher."""
        self._of_student.close()
        self._of_teacher.close()


def build_hidden_term(spec: HiddenTerm, models: Models, *, seed: int, device: torch.device) -> HiddenStates:
    """The term for two models on `device`. Raises: CheckpointInvalid for models that it cannot compare."""
    build = _hidden_mse if isinstance(spec, HiddenMSE) else _value_relation
    return build(spec, models, seed).to(device)  # type: ignore[arg-type]  # the spec is of the type of its builder


def _hidden_mse(spec: HiddenMSE, models: Models, seed: int) -> HiddenStates:
    student, teacher = _layers(models)
    pairs = uniform_layers(len(student), len(teacher))
    if spec.layers is not None:
        pairs = [(pair.student, pair.teacher) for pair in spec.layers]
    for index, pair in enumerate(pairs):
        for role, number, layers in zip(("student", "teacher"), pair, (student, teacher), strict=True):
            if number > len(layers):
                raise CheckpointInvalid(
                    f"{models.field}.layers[{index}].{role}: got {number}, but the {role} has {len(layers)} layers; "
                    "expected a number from 0, the embeddings, to that"
                )
    recorders = (
        _recorder(models.student, student, sorted({number for number, _ in pairs}), is_trained=True),
        _recorder(models.teacher, teacher, sorted({number for _, number in pairs}), is_trained=False),
    )
    widths = [model.config.get_text_config().hidden_size for model in (models.student, models.teacher)]
    term: HiddenStates

    def loss(own: States, other: States, inside: Tensor | None) -> Tensor:
        return hidden_mse(
            [own[str(number)] for number, _ in pairs],
            [other[str(number)] for _, number in pairs],
            term.get_parameter(PROJECTION),
            inside=inside,
        )

    projection = new_projection(*widths, seed=seed)
    term = HiddenStates(models.teacher, spec.weight, recorders, loss, {PROJECTION: projection})
    return term


def _recorder(model: nn.Module, layers: list[nn.Module], numbers: list[int], *, is_trained: bool) -> Recorder:
    """Of the outputs of layers from 1; 0 is what the first layer reads."""
    modules = {str(number): layers[number - 1] for number in numbers if number > 0}
    return Recorder(model, modules, {"0": layers[0]} if 0 in numbers else {}, is_trained=is_trained)


def _value_relation(spec: ValueRelation, models: Models, _: int) -> HiddenStates:
    student, teacher = _layers(models)
    chosen = spec.teacher_layer or len(teacher)
    if chosen > len(teacher):
        raise CheckpointInvalid(
            f"{models.field}.teacherLayer: got {chosen}, but the teacher {models.teacher_name} has {len(teacher)} "
            "layers; expected a number from 1 to that"
        )
    projections: list[dict[str, Any]] = [
        {
            relation: projection_of(layer, relation, what=name, model_type=model.config.model_type)
            for relation in spec.relations
        }
        for layer, name, model in (
            (student[-1], f"student {models.student_name}", models.student),
            (teacher[chosen - 1], f"teacher {models.teacher_name}", models.teacher),
        )
    ]
    heads = _relation_heads(spec, models, *projections)
    recorders = (
        Recorder(models.student, projections[0], is_trained=True),
        Recorder(models.teacher, projections[1], is_trained=False),
    )

    def loss(own: States, other: States, inside: Tensor | None) -> Tensor:
        parts = [relation_loss(own[name], other[name], heads=heads, inside=inside) for name in spec.relations]
        return torch.stack(parts).sum(0)

    return HiddenStates(models.teacher, spec.weight, recorders, loss, {})


def _relation_heads(spec: ValueRelation, models: Models, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> int:
    """The number of heads into which all projections can be divided. Raises: CheckpointInvalid for another stated one.

    Args:
        student, teacher: their projections, by relation.
    """
    widths = {
        f"{relation} in the {role}": module.out_features
        for role, projections in (("student", student), ("teacher", teacher))
        for relation, module in projections.items()
    }
    most = models.teacher.config.get_text_config().num_attention_heads
    heads = spec.relation_heads or common_heads(widths.values(), most=most)
    for place, width in widths.items():
        if width % heads:
            raise CheckpointInvalid(
                f"{models.field}.relationHeads: got {heads}, expected a divisor of {width}, the width of {place}"
            )
    return heads


def _layers(models: Models) -> tuple[list[nn.Module], list[nn.Module]]:
    return (
        layers_of(models.student, what=f"student {models.student_name}"),
        layers_of(models.teacher, what=f"teacher {models.teacher_name}"),
    )
