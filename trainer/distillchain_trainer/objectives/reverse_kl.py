"""ReverseKL: the student avoids what the teacher finds unlikely (Gu et al. 2024, MiniLLM, section 2.1).

SoftTargets makes a small student spread its probability over all that the teacher finds possible. This loss makes it
choose some of it. Only the loss is MiniLLM's: its texts are sampled from the student, here they are the training rows.
"""

from __future__ import annotations

from torch import Tensor

from distillchain_trainer.objectives.objective import Objective, log_probabilities

NAME = "ReverseKL"
OUTPUTS = ("Classes", "Labels", "Tokens")


def reverse_kl_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(student || teacher) of softened class probabilities.

    Args:
        student: logits [..., classes]; receives the gradient, through its probabilities as well.
        teacher: logits [..., classes], same class order; detached.
        temperature: divisor of both logits, > 0; 1.0 leaves them unchanged.
    Returns: [...], nats, times temperature**2 as in SoftTargets.
    """
    log_q, log_p = (log_probabilities(logits, temperature) for logits in (student, teacher.detach()))
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(-1)


OBJECTIVE = Objective(needs="logits", row_loss=reverse_kl_loss)
