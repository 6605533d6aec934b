"""SoftTargets: the student learns the teacher's softened class probabilities (Hinton et al. 2015, section 2)."""

from __future__ import annotations

from torch import Tensor

from distillchain_trainer.errors import LabelMismatch
from distillchain_trainer.objectives.objective import Objective

NAME = "SoftTargets"


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of softened class probabilities, for each row.

    Args:
        student: logits [rows, classes]; receives the gradient.
        teacher: logits [rows, classes], same class order; detached.
        temperature: divisor of both logits, > 0; 1.0 leaves them unchanged.
    Returns: [rows], nats, times temperature**2 so that gradients keep their scale.
    Raises: LabelMismatch when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise LabelMismatch(f"student logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    # float(): under autocast the logits are bfloat16. log_softmax stays finite where a probability rounds to 0.
    log_q, log_p = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher.detach()))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


OBJECTIVE = Objective(needs="logits", row_loss=soft_target_loss)
