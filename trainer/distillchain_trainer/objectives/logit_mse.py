"""LogitMSE: the student copies the teacher's outputs as numbers (Ba & Caruana 2014, section 2.2; Kim et al. 2021).

The papers write a sum over the classes. Here it is the mean, so that `alpha` weighs it alike for 2 and for 1000
classes. For outputs that are numbers already, as in Regression, it is the squared error.
"""

from __future__ import annotations

from torch import Tensor

from distillchain_trainer.objectives.objective import Objective, wide

NAME = "LogitMSE"
# Not Tokens: of a language model's teacher only probabilities are stored.
OUTPUTS = ("Classes", "Labels", "Numbers")
USES_TEMPERATURE = False


def logit_mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the outputs of (student - teacher)**2.

    Unlike the losses on probabilities it is not invariant to a shift: logits + 1 mean the same classes and cost 1.

    Args:
        student: outputs [..., outputs]; receives the gradient.
        teacher: outputs [..., outputs], in the same order; detached.
    Returns: [...], squared units of the outputs.
    """
    return (wide(student) - wide(teacher.detach())).square().mean(-1)


OBJECTIVE = Objective(needs="logits", row_loss=logit_mse_loss, uses_temperature=USES_TEMPERATURE)
