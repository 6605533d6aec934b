"""SoftTargets: the student learns the teacher's softened class probabilities (Hinton et al. 2015, section 2)."""

from __future__ import annotations

from torch import Tensor

from distillchain_trainer.objectives.objective import Objective, log_probabilities

NAME = "SoftTargets"
OUTPUTS = ("Classes", "Labels", "Tokens")


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of softened class probabilities.

    Args:
        student: logits [..., classes]; receives the gradient.
        teacher: logits [..., classes], same class order; detached.
        temperature: divisor of both logits, > 0; 1.0 leaves them unchanged.
    Returns: [...], nats, times temperature**2 so that gradients keep their scale.
    """
    log_q, log_p = (log_probabilities(logits, temperature) for logits in (student, teacher.detach()))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


OBJECTIVE = Objective(needs="logits", row_loss=soft_target_loss)
