"""What a student learns from: its teacher's soft classes and the labels. Pure tensor code."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code knows
from torch import Tensor

from distillchain_trainer.errors import LabelMismatch


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher || student) of softened classes (Hinton et al. 2015, section 2).

    Args:
        student: logits [batch, classes]; the gradient flows here.
        teacher: logits [batch, classes], same label order; detached.
        temperature: divisor of both logits, > 0, no unit; 1.0 leaves them as they are.
    Returns: scalar, nats per example, times temperature**2 so that gradients keep their size when it rises.
    Raises: LabelMismatch when the shapes differ.
    """
    if student.shape != teacher.shape:
        raise LabelMismatch(f"student logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")
    log_q, log_p = ((x.float() / temperature).log_softmax(-1) for x in (student, teacher.detach()))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def distillation_loss(
    student: Tensor, teacher: Tensor | None, labels: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """(1 - alpha) * CE(labels) + alpha * temperature^2 * KL(teacher || student).

    Args:
        teacher: None exactly when alpha is 0: the labels alone teach.
        labels: class indices [batch].
        alpha: share of the teacher's loss, 0 to 1; a part with share 0 is not computed.
    Returns: scalar, nats per example.
    """
    if teacher is None or alpha == 0:
        return F.cross_entropy(student.float(), labels)
    soft = soft_target_loss(student, teacher, temperature=temperature)
    if alpha == 1:
        return soft
    return (1 - alpha) * F.cross_entropy(student.float(), labels) + alpha * soft
