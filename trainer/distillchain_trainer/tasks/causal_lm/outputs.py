"""What is kept of a language model's logits: of a teacher its most probable tokens, of a measured model two numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distillchain_trainer.tasks.causal_lm.selected import blocks

# float32 holds every whole number up to here, so a token id survives beside log-probabilities in one tensor.
MOST_IDS = 2**24

# Logarithm of the rest where k tokens are the whole vocabulary. -inf would be taken for a diverged model; this number
# is finite even when it is divided by a temperature.
NOTHING = -1e30

OfBlock = Callable[[Tensor, Tensor], Tensor]
"""From a copy of logits [items, vocabulary] in the model's type, and target ids [items, 1], to float32."""


def teacher_outputs(logits: Tensor, positions: Tensor, targets: Tensor, *, k: int, tokens: int) -> Tensor:
    """The teacher's prediction for each item, float32 [rows, width, 2 * k + 2]; see `split_teacher_outputs`.

    Args:
        logits: [rows, tokens of a row, vocabulary].
        positions: of the items in their rows, int64 [rows, width].
        targets: ids of the tokens that are to be predicted, int64 [rows, width].
        k: at most `tokens`.
        tokens: ids that the tokenizer knows. Rows of the embedding beyond them are padding: their probability counts
            as that of the other tokens, since a student may not have them.
    """

    def of_block(own: Tensor, target: Tensor) -> Tensor:
        # Of bfloat16 before it is converted: the search reads half of the bytes half as often.
        best, ids = own[:, :tokens].topk(k, dim=-1)
        wide = own.float()
        best, of_target = best.float(), wide.gather(-1, target)
        # In place, and the sum of all from that of the rest: each pass over the vocabulary takes time.
        rest = wide.scatter_(-1, ids, -torch.inf).logsumexp(-1, keepdim=True).clamp(min=NOTHING)
        total = torch.cat([best, rest], dim=-1).logsumexp(-1, keepdim=True)
        return torch.cat([best - total, ids.float(), rest - total, of_target - total], dim=-1)

    return _by_item(logits, positions, targets, of_block, columns=2 * k + 2)


def split_teacher_outputs(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """What `teacher_outputs` has packed.

    Returns: ids of the k most probable tokens, int64 [..., k]; log-probabilities of these and of all other tokens
        together [..., k + 1].
    """
    k = (outputs.shape[-1] - 2) // 2
    return outputs[..., k : 2 * k].long(), torch.cat([outputs[..., :k], outputs[..., 2 * k : 2 * k + 1]], dim=-1)


def measured_outputs(logits: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
    """For each item the log-probability of its token and the id of the most probable one, float32 [rows, width, 2]."""

    def of_block(own: Tensor, target: Tensor) -> Tensor:
        wide = own.float()
        log_probability = wide.gather(-1, target) - wide.logsumexp(-1, keepdim=True)
        return torch.cat([log_probability, own.argmax(-1, keepdim=True).float()], dim=-1)

    return _by_item(logits, positions, targets, of_block, columns=2)


def at_positions(logits: Tensor, positions: Tensor) -> Tensor:
    """Logits of the items: [rows, tokens, vocabulary] and [rows, width] to [rows, width, vocabulary]."""
    return logits.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def _by_item(logits: Tensor, positions: Tensor, targets: Tensor, of_block: OfBlock, *, columns: int) -> Tensor:
    rows, width = positions.shape
    length, vocabulary = logits.shape[1:]
    assert vocabulary <= MOST_IDS
    flat = logits.reshape(-1, vocabulary)
    starts = torch.arange(rows, device=positions.device).unsqueeze(1) * length
    places, wanted = (starts + positions).flatten(), targets.flatten().unsqueeze(-1)
    found = torch.empty((rows * width, columns), device=logits.device)
    for part in blocks(rows * width, vocabulary):
        found[part] = of_block(flat[places[part]], wanted[part])
    return found.reshape(rows, width, columns)
