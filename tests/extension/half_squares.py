"""A toy objective for tests/test_extension.py: half the squared distance of the outputs."""

from __future__ import annotations

from torch import Tensor

from distillchain_trainer.objectives.objective import Objective

NAME = "HalfSquares"


def half_squares(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """[rows, outputs] twice to [rows]."""
    return ((student - teacher.detach()) / temperature).square().sum(-1) / 2


OBJECTIVE = Objective(needs="logits", row_loss=half_squares)
