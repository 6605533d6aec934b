"""HiddenMSE: the student's hidden states, projected, copy the teacher's (Jiao et al. 2020, TinyBERT, equation 8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distillchain_trainer.hidden_states.tokens import mean_over_tokens
from distillchain_trainer.objectives.objective import wide


def hidden_mse(
    student: Sequence[Tensor], teacher: Sequence[Tensor], projection: Tensor, *, inside: Tensor | None
) -> Tensor:
    """Mean over pairs of layers, tokens and dimensions of (student @ projection - teacher)**2.

    Args:
        student: hidden states [rows, tokens, width of the student] of some layers; receive the gradient.
        teacher: hidden states [rows, tokens, width of the teacher] of their partners; detached.
        projection: [width of the student, width of the teacher], shared by all layers; receives the gradient.
        inside: bool [rows, tokens], False for padding; None: no padding.
    Returns: [rows], squared units of the teacher's hidden states.
    """
    squares = [
        (wide(own) @ projection.to(wide(own).dtype) - wide(other.detach())).square().mean(-1)
        for own, other in zip(student, teacher, strict=True)
    ]
    return mean_over_tokens(torch.stack(squares).mean(0), inside)


def uniform_layers(student: int, teacher: int) -> list[tuple[int, int]]:
    """Pairs of layers from 1: the last teaches the last, the others are spread evenly, as TinyBERT's g(m) = m N / M."""
    # In whole numbers, because round() would take 2.5 to 2 and 3.5 to 4.
    return [(layer, (2 * layer * teacher + student) // (2 * student)) for layer in range(1, student + 1)]


def new_projection(student: int, teacher: int, *, seed: int) -> Tensor:
    """Random weights that keep the size of what they project, [width of the student, width of the teacher]."""
    # A generator of its own: the student's weights and dropout must not depend on whether there is a projection.
    dice = torch.Generator().manual_seed(seed)
    weights: Tensor = torch.randn(student, teacher, generator=dice) / student**0.5
    return weights
