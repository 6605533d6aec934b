"""The loss on the labels: label smoothing and class weights. Fields of `training`, because stage zero has them too.

Which fields fit depends on the task, so these rules belong to the spec: `label_faults` checks them in Python,
LABEL_RULES in the API server, except for the names of classes: comparing them there would cost too much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Protocol

from pydantic import Field

from distillchain_api.cel import cel
from distillchain_api.faults import Expect, Fault, expected, nearest
from distillchain_api.task import Task
from distillchain_api.tasks import task_types

MAX_WEIGHTS = 1000  # as many as a task may have classes

LabelSmoothing = Annotated[
    float, Field(ge=0, lt=1), Expect("a share from 0 and below 1", "0.1 is common; 0 leaves the labels as they are")
]
Weight = Annotated[float, Field(ge=0, le=1000), Expect("a number from 0 to 1000", "1 is neutral")]
ClassWeights = Annotated[dict[str, Weight], Field(max_length=MAX_WEIGHTS), Expect("weights by names of classes")]

BOTH = "expected either classWeights or balancedClasses"


class LabelFields(Protocol):
    """The fields as template, stage and `fineTune` have them; None: not stated."""

    @property
    def label_smoothing(self) -> float | None:
        """Share of a label that is spread over all classes."""

    @property
    def class_weights(self) -> dict[str, float] | None:
        """Weights by names of classes."""

    @property
    def balanced_classes(self) -> bool | None:
        """Whether rare classes weigh more."""


def label_faults(task: Task, template: LabelFields, overrides: Mapping[str, LabelFields]) -> Iterator[Fault]:
    """What does not fit the task, and class weights that are stated twice. Fields are relative to the spec.

    Args:
        overrides: what stages and `fineTune` state, by their place, such as `stages[0].training`.
    """
    for place, fields in {"template.training": template, **overrides}.items():
        stated = {"labelSmoothing": fields.label_smoothing, "classWeights": fields.class_weights}
        stated["balancedClasses"] = fields.balanced_classes
        if task.outputs != "Classes":
            wanted = f"nothing for task {task.type}, whose loss on the labels has no classes that exclude each other"
            yield from (
                Fault(f"{place}.{name}", expected(value, wanted, "remove it"))
                for name, value in stated.items()
                if value
            )
            continue
        for name in fields.class_weights or {}:
            if name not in task.class_names:
                yield Fault(f"{place}.classWeights.{name}", f"no class of the task; {nearest(name, task.class_names)}")
        # A stage may turn off what the template states, so the values that meet in it are compared.
        weights = template.class_weights if fields.class_weights is None else fields.class_weights
        balanced = template.balanced_classes if fields.balanced_classes is None else fields.balanced_classes
        own = fields.class_weights is not None or fields.balanced_classes is not None
        if own and weights and balanced:
            remedy = "write balancedClasses: false or classWeights: {} to turn one off"
            yield Fault(f"{place}.balancedClasses", expected(True, f"false with classWeights; {remedy}"))


def label_rules(types: Mapping[str, type[Task]]) -> Iterator[dict[str, str]]:
    """`label_faults` as CEL rules of the spec."""
    without = sorted(name for name, task in types.items() if task.outputs != "Classes")
    if not without:
        return
    used = (
        "(has(TRAINING.labelSmoothing) && TRAINING.labelSmoothing > 0.0) || (has(TRAINING.classWeights) && "
        "TRAINING.classWeights.size() > 0) || (has(TRAINING.balancedClasses) && TRAINING.balancedClasses)"
    )
    places = {
        ".template.training": f"has(self.template) && has(self.template.training) && "
        f"({used.replace('TRAINING', 'self.template.training')})",
        ".teacher.fineTune": f"has(self.teacher.fineTune) && ({used.replace('TRAINING', 'self.teacher.fineTune')})",
        ".stages": f"self.stages.exists(stage, has(stage.training) && ({used.replace('TRAINING', 'stage.training')}))",
    }
    for place, condition in places.items():
        yield cel(
            f"!(self.task.type in {without}) || !({condition})",
            f"labelSmoothing, classWeights and balancedClasses do not apply to task {' and '.join(without)}; "
            "remove them",
            fieldPath=place,
        )


LABEL_RULES = list(label_rules(task_types()))
"""For ChainSpec."""
BLOCK_RULE = cel(
    "!has(self.balancedClasses) || !self.balancedClasses || !has(self.classWeights) || self.classWeights.size() == 0",
    BOTH,
    fieldPath=".balancedClasses",
)
"""For Training and TrainingOverrides."""
