"""The mean of the stored predictions of several teachers, in the form of the predictions of one.

For each teacher, the k most probable tokens and the probability of all others together are known (outputs.py). If a
token is among the k of one teacher but not of another, its probability with the other is estimated: the rest of that
teacher, divided evenly among its other tokens. Stored values stay, no estimate exceeds the smallest of the k, and all
add up to 1. If k is the whole vocabulary, nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from distillchain_trainer.tasks.causal_lm.outputs import NOTHING, split_teacher_outputs

BLOCK_ITEMS = 2**13  # with k = 64 and two teachers, about 60 MiB


def mean_of_teachers(outputs: Tensor, weights: Tensor, *, temperature: float, vocabulary: int) -> Tensor:
    """The k most probable tokens of the mean, in the form of `teacher_outputs` [items, 2 * k + 2].

    Args:
        outputs: of each teacher, [teachers, items, 2 * k + 2]; not k tokens but k + 1 outcomes are softened.
        weights: [teachers], positive; they add up to 1.
        temperature: of the objective. The mean of the softened probabilities is that of the result.
        vocabulary: ids that the tokenizer knows.
    """
    return torch.cat(
        [_mean(block, weights, temperature=temperature, vocabulary=vocabulary) for block in _blocks(outputs)]
    )


def _blocks(outputs: Tensor) -> Iterator[Tensor]:
    for start in range(0, outputs.shape[1], BLOCK_ITEMS):
        yield outputs[:, start : start + BLOCK_ITEMS]


def _mean(outputs: Tensor, weights: Tensor, *, temperature: float, vocabulary: int) -> Tensor:
    shares = weights.log().reshape(-1, 1, 1)
    ids, logs = split_teacher_outputs(outputs)
    teachers, _, k = ids.shape
    softened = (logs / temperature).log_softmax(-1)
    known, rest = softened[..., :k], softened[..., k:]
    others = vocabulary - k  # tokens that the rest of one teacher is made of
    each = rest - math.log(max(others, 1))

    # A column for each token of each teacher. A token that an earlier teacher has too counts once.
    union = torch.cat(list(ids), dim=-1)
    columns = list(pairwise(range(0, teachers * k + 1, k)))
    repeated = torch.zeros_like(union, dtype=torch.bool)
    found = []
    for teacher in range(teachers):
        order = ids[teacher].argsort(dim=-1)
        in_order = ids[teacher].gather(-1, order).contiguous()
        place = torch.searchsorted(in_order, union).clamp(max=k - 1)
        has = in_order.gather(-1, place) == union
        found.append(torch.where(has, known[teacher].gather(-1, order.gather(-1, place)), each[teacher]))
        later = columns[teacher][1]
        repeated[:, later:] |= has[:, later:]
    mean = (shares + torch.stack(found)).logsumexp(0).masked_fill(repeated, -torch.inf)

    best, place = mean.topk(k, dim=-1)
    dropped = mean.scatter(-1, place, -torch.inf).logsumexp(-1, keepdim=True)
    # What no teacher has among its k: of each rest, as many tokens as are not in the union.
    left = vocabulary - (~repeated).sum(-1, keepdim=True)
    unknown = (shares + each).logsumexp(0) + left.to(each).log()
    others_together = torch.logaddexp(dropped, unknown).clamp(min=NOTHING)
    of_target = (shares + outputs[..., -1:]).logsumexp(0)
    return torch.cat(
        [temperature * best, union.gather(-1, place).to(best), temperature * others_together, of_target], -1
    )
