"""A toy objective for tests/test_extension.py: half the squared distance of the outputs, times a factor."""

from __future__ import annotations

from torch import Tensor

from distillchain_trainer.objectives.objective import Objective

NAME = "HalfSquares"
PARAMETERS = {"factor": {"description": "factor of the loss", "default": 1.0, "above": 0, "at_most": 10}}


def half_squares(student: Tensor, teacher: Tensor, *, temperature: float, factor: float) -> Tensor:
    """[..., outputs] twice to [...]."""
    return factor * ((student - teacher.detach()) / temperature).square().sum(-1) / 2


OBJECTIVE = Objective(needs="logits", row_loss=half_squares)
