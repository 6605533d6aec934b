"""What an objective is, and how it is weighed against the loss on the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from distillchain_trainer.errors import LabelMismatch

RowLoss = Callable[..., Tensor]
"""A loss between the outputs of student and teacher, one value for each row, word or token.

Positional: the outputs of both, [..., outputs] in the same order; the gradient flows to the student only. By keyword:
`temperature` and `true_class` if the objective asks for them, and the objective's own parameters in snake case. Returns
[...], in float32 or wider.
"""


@dataclass(frozen=True)
class Objective:
    """One distillation loss.

    Attributes:
        needs: what it reads of the teacher. Logits are computed once and stored.
        row_loss: the loss itself, a value per row: micro-batches of any size then weigh the same rows the same.
        uses_temperature: whether `row_loss` takes `temperature`.
        needs_true_class: whether `row_loss` takes `true_class`, int64 [...]; negative where a row has no label.
    """

    needs: Literal["logits"]
    row_loss: RowLoss
    uses_temperature: bool = True
    needs_true_class: bool = False

    def losses(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        temperature: float,
        parameters: Mapping[str, float],
        true_class: Tensor | None = None,
    ) -> Tensor:
        """The loss of each row, word or token [...].

        Args:
            student: outputs [..., outputs]; receives the gradient.
            teacher: outputs [..., outputs], in the same order.
            parameters: the objective's own numbers, in snake case.
        Raises: LabelMismatch when the shapes differ.
        """
        if student.shape != teacher.shape:
            raise LabelMismatch(f"student logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
        keywords: dict[str, float | Tensor | None] = {**parameters}
        if self.uses_temperature:
            keywords["temperature"] = temperature
        if self.needs_true_class:
            keywords["true_class"] = true_class
        return self.row_loss(student, teacher, **keywords)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, in float32 or wider."""
    # Under autocast the logits are bfloat16, which has three significant digits; float64 is kept for gradient checks.
    # log_softmax and not the logarithm of softmax: it stays finite where a probability rounds to 0.
    return (wide(logits) / temperature).log_softmax(-1)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is float64 already."""
    return tensor if tensor.dtype.itemsize > 4 else tensor.float()


def combined_loss(label_loss: Tensor | None, teacher_loss: Tensor | None, *, alpha: float) -> Tensor:
    """(1 - alpha) * label_loss + alpha * teacher_loss, [...]; a part with weight 0 may be None."""
    if teacher_loss is None or alpha == 0:
        assert label_loss is not None
        return label_loss
    if label_loss is None or alpha == 1:
        return teacher_loss
    return (1 - alpha) * label_loss + alpha * teacher_loss
