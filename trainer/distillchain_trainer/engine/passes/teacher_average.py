"""The weighted mean of the outputs of several teachers, in the form of the outputs of one.

Probabilities are averaged, not logits: a teacher with large logits would otherwise outvote the others. The mean is
written as logits that give it at the temperature of the objective, so every objective that takes one teacher takes
several. Outputs that are compared as numbers are averaged as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.engine.encoding.blocks import outputs_within
from distillchain_trainer.engine.passes.node_array import NodeArray
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs

BLOCK_BYTES = 16 * 2**20  # of one teacher's outputs in memory at a time

Mean = Literal["Classes", "Labels", "Numbers"]
"""What is averaged: probabilities of classes that exclude each other, of labels that do not, or outputs as numbers."""


MeanOf = Callable[[Tensor, Tensor], Tensor]
"""From outputs [teachers, ..., outputs] in float64 and weights [teachers], outputs [..., outputs] for all teachers."""


def mean_outputs(outputs: Tensor, weights: Tensor, *, mean: Mean, temperature: float) -> Tensor:
    """The mean [..., outputs] of the outputs of several teachers.

    Args:
        outputs: [teachers, ..., outputs], in the same order.
        weights: [teachers], positive; they add up to 1.
        temperature: of the objective. The softened probabilities of the result are the mean.
    """
    shares = weights.reshape(-1, *[1] * (outputs.ndim - 1))
    if mean == "Numbers":
        return (shares * outputs).sum(0)
    softened = outputs / temperature
    # All in logarithms: a probability that rounds to 0 with every teacher keeps its order among the others.
    logs = shares.log()
    if mean == "Labels":
        yes, no = ((logs + torch.nn.functional.logsigmoid(side)).logsumexp(0) for side in (softened, -softened))
        return temperature * (yes - no)
    return temperature * (logs + softened.log_softmax(-1)).logsumexp(0)


def average(
    teachers: Sequence[TeacherOutputs], weights: Sequence[float], *, mean_of: MeanOf, file: NodeArray
) -> TeacherOutputs:
    """The outputs of one teacher that answers as several do. All ranks call it.

    An item counts as unanswered if one of the teachers has no answer for it.

    Args:
        teachers: for the same rows.
        weights: they add up to 1.
        file: for the result, in the task's order of columns.
    """
    first = teachers[0]
    # Texts and their items do not depend on the tokenizer, so all teachers have them in the same places.
    assert all(len(teacher.values) == len(first.values) for teacher in teachers)
    inner = first.values.shape[1:]
    values = file.shared(first.values.shape)
    if file.world.leads_node:
        shares = torch.tensor(weights, dtype=torch.float64)
        most = outputs_within(BLOCK_BYTES, inner)
        for start in range(0, len(values), most):
            # float64, because a weighted mean of logarithms would otherwise lose digits that float32 outputs have.
            block = np.stack([_in_order(teacher, slice(start, start + most)) for teacher in teachers])
            values[start : start + most] = mean_of(torch.from_numpy(block), shares).numpy()
    file.world.meet("mean of the teachers' outputs")
    answered = [teacher.answered for teacher in teachers if teacher.answered is not None]
    return replace(
        first,
        values=values,
        columns=None,
        reused=all(teacher.reused for teacher in teachers),
        elapsed_s=sum(teacher.elapsed_s for teacher in teachers),
        answered=np.logical_and.reduce(answered) if answered else None,
    )


def _in_order(teacher: TeacherOutputs, rows: slice) -> NDArray[np.float64]:
    """Some outputs in the task's order of columns."""
    values = np.asarray(teacher.values[rows], dtype=np.float64)
    return values if teacher.columns is None else values[..., list(teacher.columns)]
