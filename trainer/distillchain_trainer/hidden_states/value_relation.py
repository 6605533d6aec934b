"""ValueRelation: how alike the tokens of a text are to each other (Wang et al. 2021, MiniLMv2, section 3.1).

The relation of two tokens is the scaled product of their values (or queries, or keys), so widths and attention heads of
student and teacher may differ: both are cut into the same number of relation heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from distillchain_trainer.hidden_states.tokens import mean_over_tokens
from distillchain_trainer.objectives.objective import wide


def relation_loss(student: Tensor, teacher: Tensor, *, heads: int, inside: Tensor | None) -> Tensor:
    """Mean over relation heads and tokens of KL(teacher's relations || student's).

    Args:
        student: values of all attention heads [rows, tokens, width]; receive the gradient.
        teacher: the same [rows, tokens, width of the teacher]; detached.
        heads: relation heads, a divisor of both widths.
        inside: bool [rows, tokens], False for padding; None: no padding.
    Returns: [rows], nats.
    """
    log_q, log_p = (log_relations(values, heads=heads, inside=inside) for values in (student, teacher.detach()))
    difference = log_p - log_q
    if inside is not None:
        # -inf - -inf is no number; padding has probability 0 and adds nothing.
        difference = difference.masked_fill(~inside[:, None, None, :], 0.0)
    return mean_over_tokens((log_p.exp() * difference).sum(-1).mean(1), inside)


def common_heads(widths: Iterable[int], *, most: int) -> int:
    """The largest number of relation heads that divides all widths, `most` at most."""
    divisor = math.gcd(*widths)
    return max(heads for heads in range(1, most + 1) if divisor % heads == 0)


def log_relations(values: Tensor, *, heads: int, inside: Tensor | None) -> Tensor:
    """ln softmax(V V^T / sqrt(d)) of each relation head, [rows, heads, tokens, tokens]; -inf for padding."""
    rows, tokens, width = values.shape
    parts = wide(values).reshape(rows, tokens, heads, width // heads).transpose(1, 2)
    scores = parts @ parts.transpose(-1, -2) / (width // heads) ** 0.5
    if inside is not None:
        scores = scores.masked_fill(~inside[:, None, None, :], -torch.inf)
    logs: Tensor = scores.log_softmax(-1)
    return logs
