"""What an objective is, and how it is weighed against the loss on the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


class RowLoss(Protocol):
    """A loss between the outputs of student and teacher, one value per row."""

    def __call__(self, student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        """[rows, ...] twice, in the same order of outputs, to [rows]; the gradient flows to the student only."""


@dataclass(frozen=True)
class Objective:
    """One distillation loss.

    Attributes:
        needs: what it reads of the teacher. Logits are computed once and stored; hidden states need the teacher beside
            the student.
        row_loss: the loss itself, a value per row: micro-batches of any size then weigh the same rows the same.
    """

    needs: Literal["logits"]
    row_loss: RowLoss


def combined_loss(label_loss: Tensor | None, teacher_loss: Tensor | None, *, alpha: float) -> Tensor:
    """(1 - alpha) * label_loss + alpha * teacher_loss, [rows]; a part with weight 0 may be None."""
    if teacher_loss is None or alpha == 0:
        assert label_loss is not None
        return label_loss
    if label_loss is None or alpha == 1:
        return teacher_loss
    return (1 - alpha) * label_loss + alpha * teacher_loss
