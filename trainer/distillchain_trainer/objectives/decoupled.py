"""Decoupled: DKD, which weighs the true class and the other classes by themselves (Zhao et al. 2022, section 3).

SoftTargets is binary KL (true class or not) + (1 - p_true) * KL among the other classes: the surer the teacher is, the
less the student learns from the other classes. DKD replaces that factor by a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillchain_trainer.objectives.objective import Objective, log_probabilities

NAME = "Decoupled"
OUTPUTS = ("Classes",)
PARAMETERS = {
    "targetWeight": {
        "description": "weight of the part on the true class, alpha in the paper",
        "default": 1.0,
        "at_least": 0,
        "at_most": 1000,
    },
    "nonTargetWeight": {
        "description": "weight of the part among the other classes, beta in the paper",
        "default": 8.0,
        "at_least": 0,
        "at_most": 1000,
    },
}


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    true_class: Tensor,
    target_weight: float,
    non_target_weight: float,
) -> Tensor:
    """target_weight KL(b_teacher || b_student) + non_target_weight KL(o_teacher || o_student), softened.

    b: the probabilities of the true class and of all others together. o: the probabilities among the others, which are
    certain with two classes, so that the second part is then 0.

    Args:
        student: logits [..., classes]; receives the gradient.
        teacher: logits [..., classes], same class order; detached.
        temperature: divisor of both logits, > 0; 1.0 leaves them unchanged.
        true_class: class indices, int64 [...]. Negative where a row has no label: then the teacher's most probable
            class counts as the true one.
    Returns: [...], nats, times temperature**2 as in SoftTargets.
    """
    taken = torch.where(true_class < 0, teacher.argmax(-1), true_class)
    is_true = torch.nn.functional.one_hot(taken, student.shape[-1]).bool()
    log_q, log_p = (log_probabilities(logits, temperature) for logits in (student, teacher.detach()))
    target = _kl(_binary(log_p, is_true), _binary(log_q, is_true))
    # The others' logits alone: -inf for the true class gives it probability 0.
    others_q, others_p = (_others(log, is_true) for log in (log_q, log_p))
    return temperature**2 * (target_weight * target + non_target_weight * _kl(others_p, others_q))


def _binary(log: Tensor, is_true: Tensor) -> Tensor:
    """Logarithms of the probabilities of the true class and of the rest, [..., 2]."""
    # logsumexp and not log(1 - p), which is -inf as soon as p rounds to 1.
    parts = [log.masked_fill(~mask, -torch.inf).logsumexp(-1) for mask in (is_true, ~is_true)]
    return torch.stack(parts, dim=-1)


def _others(log: Tensor, is_true: Tensor) -> Tensor:
    """Logarithms of the probabilities among the other classes, [..., classes]; 0 at the true class."""
    masked = log.masked_fill(is_true, -torch.inf).log_softmax(-1)
    # 0 and not -inf in both: their difference must be a number, and its weight must not be one.
    return masked.masked_fill(is_true, 0.0)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, [...]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


OBJECTIVE = Objective(needs="logits", row_loss=decoupled_loss, needs_true_class=True)
