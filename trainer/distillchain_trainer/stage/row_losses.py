"""The loss of each training row: of the labels and of the teacher, weighed by `alpha`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillchain_api.resource.distillation import Distillation
from distillchain_trainer.engine.training.step import RowLosses
from distillchain_trainer.objectives import load_objective
from distillchain_trainer.objectives.label_term import LabelTerm
from distillchain_trainer.objectives.objective import combined_loss
from distillchain_trainer.tasks.interface import TaskAdapter


def row_losses_of(task: TaskAdapter, distillation: Distillation | None, labels: LabelTerm | None = None) -> RowLosses:
    """The loss of each row: labels and teacher, weighed by `alpha`; without distillation the labels alone.

    Args:
        labels: label smoothing and class weights; None: neither, and the task computes its own loss on the labels.
    """
    # These fields are accepted only for tasks whose loss is a cross-entropy of classes (resource/label_term.py).
    label_loss = task.label_loss if labels is None or labels.is_plain else labels.losses
    if distillation is None or distillation.alpha == 0:

        def label_losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
            return _per_row(label_loss(task.logits_of(answer, compared), compared["targets"]), compared)

        return label_losses
    objective, alpha = load_objective(distillation.objective), distillation.alpha

    def losses(answer: Any, compared: dict[str, Tensor]) -> Tensor:
        logits = task.logits_of(answer, compared)
        # With alpha 1 the labels have no weight, so their loss is not computed.
        label = label_loss(logits, compared["targets"]) if alpha < 1 else None
        student, taught = task.teacher_pair(logits, compared["teacher"])
        teacher = objective.losses(
            student,
            taught,
            temperature=distillation.temperature,
            parameters=distillation.all_parameters,
            true_class=_true_class(compared) if objective.needs_true_class else None,
        )
        if "inside" not in compared and teacher.ndim > 1:
            # A row with several outputs of their own, such as labels: their mean, as in the loss on the labels.
            teacher = teacher.flatten(1).mean(1)
        combined = combined_loss(label, teacher, alpha=alpha)
        if label is not None and "labelled" in compared:
            # A row without a label has no other signal, so it learns from the teacher with its full weight.
            combined = torch.where(compared["labelled"], combined, teacher)
        return _per_row(combined, compared)

    return losses


def _true_class(compared: dict[str, Tensor]) -> Tensor:
    """Class indices [rows]; -1 for a row without a label."""
    targets = compared["targets"]
    return torch.where(compared["labelled"], targets, -1) if "labelled" in compared else targets


def _per_row(losses: Tensor, compared: dict[str, Tensor]) -> Tensor:
    """The losses [rows] of a task with one output per row; for a task with items the sum of those of each row."""
    if "inside" not in compared:
        return losses
    # Not a product: what a model answers for padding may be no number.
    return losses.where(compared["inside"], 0.0).sum(-1)
