"""A mean over the tokens of each row."""

from __future__ import annotations

from torch import Tensor


def mean_over_tokens(values: Tensor, inside: Tensor | None) -> Tensor:
    """The mean of values [rows, tokens] for each row [rows].

    Args:
        inside: bool [rows, tokens], False for padding; None: no padding.
    """
    if inside is None:
        return values.mean(-1)
    # Not a product: what a model computes for padding may be no number.
    return values.where(inside, 0.0).sum(-1) / inside.sum(-1).clamp(min=1)
