"""Log-probabilities of a few tokens out of a large vocabulary, in blocks of tokens.

A vocabulary has 50,000 to 250,000 tokens. Logits of a whole batch in float32, their softmax and its gradient would take
more memory than the model itself, so everything that is float32 here covers one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**26  # float32 values of one block: 256 MiB


def selected_log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """Logarithms of the probabilities of some tokens, and of all other tokens together.

    Args:
        logits: [..., vocabulary], in any floating-point type; receives the gradient.
        ids: int64 [..., k], different ids for each prediction.
    Returns: float32 (float64 for float64) [..., k + 1]; [..., k] if `ids` are the whole vocabulary, because nothing is
        left then.
    """
    vocabulary, k = logits.shape[-1], ids.shape[-1]
    # reshape makes no copy of logits that a model has just returned.
    found: Tensor = _Selected.apply(logits.reshape(-1, vocabulary), ids.reshape(-1, k))
    return found.reshape(*ids.shape[:-1], found.shape[-1])


def target_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Logarithms of the probabilities of one token for each prediction: [..., vocabulary] and [...] to [...]."""
    return selected_log_probabilities(logits, targets.unsqueeze(-1))[..., 0]


def blocks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Parts of `rows` predictions whose logits have at most BLOCK_ELEMENTS values."""
    size = max(1, BLOCK_ELEMENTS // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, start + size)


class _Selected(torch.autograd.Function):
    """[rows, vocabulary] and [rows, k] to [rows, k + 1]. Its backward pass makes the only copy of the logits' size.

    A pass over the logits of a block takes as long as several layers of a small model, so what can be computed in place
    or from the k + 1 sums is.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor) -> Tensor:
        (rows, vocabulary), k = logits.shape, ids.shape[-1]
        has_rest = k < vocabulary
        kind = torch.promote_types(logits.dtype, torch.float32)
        found = torch.empty((rows, k + has_rest), dtype=kind, device=logits.device)
        for part in blocks(rows, vocabulary):
            wide, picked = logits[part].to(kind, copy=True), ids[part]
            found[part, :k] = wide.gather(-1, picked)
            if has_rest:
                # Not log(1 - sum of the others), which has no digits left where the rest is small.
                found[part, k] = wide.scatter_(-1, picked, -torch.inf).logsumexp(-1)
        found -= found.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(logits, ids, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, ids, logs = ctx.saved_tensors
        (given,) = gradients
        k = ids.shape[-1]
        # log p_i = z_i - logsumexp(z), so each output takes its gradient times the softmax from every logit.
        own = given - given.sum(-1, keepdim=True) * logs.exp()
        found = torch.empty_like(logits)
        for part in blocks(*logits.shape):
            picked = ids[part]
            if logs.shape[-1] > k:
                # The others share the gradient of their sum as they share its probability.
                others = logits[part].to(logs.dtype, copy=True).scatter_(-1, picked, -torch.inf).softmax(-1)
                torch.mul(others, own[part, k:], out=found[part])
            found[part].scatter_(-1, picked, own[part, :k].to(found.dtype))
        return found, None
