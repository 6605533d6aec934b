"""What a sequence task asks of a model's head: one vector of outputs for a whole text."""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_trainer.errors import CheckpointInvalid

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

TASK_TYPES = {SINGLE_LABEL: "TextClassification", MULTI_LABEL: "MultiLabelClassification", REGRESSION: "Regression"}
"""The task type of each `problem_type` of transformers."""


@dataclass(frozen=True)
class Head:
    """The head that a task needs.

    Attributes:
        problem_type: as transformers names it; decides the task type in messages.
        purpose: what a model with this head was trained to do.
        names: of the outputs, in the order of the task.
        texts: how many a row has.
        max_length: tokens that a text is truncated to.
    """

    problem_type: str
    purpose: str
    names: tuple[str, ...]
    texts: int
    max_length: int

    @property
    def task_type(self) -> str:
        """As in `spec.task.type`."""
        return TASK_TYPES[self.problem_type]

    @property
    def has_classes(self) -> bool:
        """Whether the outputs are matched by name; the only output of a regression needs no name."""
        return self.problem_type != REGRESSION

    def check_outputs(self, count: int, what: str) -> None:
        """That a checkpoint with so many outputs can be one of the task. Raises: CheckpointInvalid."""
        if self.problem_type == REGRESSION and count != 1:
            raise CheckpointInvalid(
                f"{what}: num_labels: got {count}, expected 1; Regression needs a head with one output"
            )
        if self.problem_type == SINGLE_LABEL and count == 1:
            raise CheckpointInvalid(
                f"{what}: num_labels: got 1, expected a class for each of spec.task.labels; a head with one output is "
                "a regression"
            )
