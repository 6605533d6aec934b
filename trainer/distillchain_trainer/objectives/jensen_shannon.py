"""JensenShannon: a bounded loss between SoftTargets and ReverseKL (Agarwal et al. 2024, GKD, section 2, equation 1).

Only the loss is GKD's: its texts are sampled from the student, here they are the training rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distillchain_trainer.objectives.objective import Objective, log_probabilities

NAME = "JensenShannon"
OUTPUTS = ("Classes", "Labels", "Tokens")
PARAMETERS = {
    "beta": {
        "description": "weight of the teacher in the mixture that both are compared with. Near 0, the loss divided by "
        "beta tends to SoftTargets; near 1, the loss divided by 1 - beta tends to ReverseKL",
        "default": 0.5,
        "above": 0,
        "below": 1,
    }
}


def jensen_shannon_loss(student: Tensor, teacher: Tensor, *, temperature: float, beta: float) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q; p: teacher, q: student, both softened.

    Args:
        student: logits [..., classes]; receives the gradient, through the mixture as well.
        teacher: logits [..., classes], same class order; detached.
        temperature: divisor of both logits, > 0; 1.0 leaves them unchanged.
        beta: 0 < beta < 1.
    Returns: [...], nats, times temperature**2 as in SoftTargets; at most temperature**2 ln 2.
    """
    log_q, log_p = (log_probabilities(logits, temperature) for logits in (student, teacher.detach()))
    # The logarithm of the mixture without leaving the logarithms: probabilities that round to 0 stay comparable.
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    of_teacher = (log_p.exp() * (log_p - log_m)).sum(-1)
    of_student = (log_q.exp() * (log_q - log_m)).sum(-1)
    return temperature**2 * (beta * of_teacher + (1 - beta) * of_student)


OBJECTIVE = Objective(needs="logits", row_loss=jensen_shannon_loss)
