"""What a stage makes of objective, labels and task: the loss of each row."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from distillchain_api.objectives import ObjectiveParameters
from distillchain_api.resource.distillation import Distillation
from distillchain_trainer.objectives.label_term import LabelTerm
from distillchain_trainer.stage.row_losses import row_losses_of
from distillchain_trainer.tasks.interface import TaskAdapter

ROWS, CLASSES = 5, 3


class Classes:
    """The parts of a task that losses are made of: one class out of several."""

    def logits_of(self, answer: Tensor, _: Any) -> Tensor:
        return answer

    def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return logits, teacher

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")


class Labels(Classes):
    """Labels that do not exclude each other, each with a sigmoid."""

    def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, taught = (torch.stack([z, torch.zeros_like(z)], -1) for z in (logits, teacher))
        return student, taught

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(-1)


def losses(task: Classes, distillation: Distillation | None, compared: dict[str, Tensor], **more: Any) -> Tensor:
    torch.manual_seed(1)
    answer = torch.randn(ROWS, CLASSES)
    compared = {"teacher": torch.randn(ROWS, CLASSES), **compared}
    return row_losses_of(cast("TaskAdapter", task), distillation, **more)(answer, compared)


def test_labels_that_do_not_exclude_each_other_cost_the_mean_of_their_binary_divergences():
    compared = {"targets": torch.randint(0, 2, (ROWS, CLASSES)), "teacher": torch.randn(ROWS, CLASSES)}

    got = losses(Labels(), Distillation(alpha=0.75), compared)

    torch.manual_seed(1)
    z = torch.randn(ROWS, CLASSES)
    p, q = torch.sigmoid(compared["teacher"]), torch.sigmoid(z)
    binary = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    label = Labels().label_loss(z, compared["targets"])
    torch.testing.assert_close(got, 0.25 * label + 0.75 * binary.mean(-1))


def test_an_objective_gets_its_parameters_and_the_true_class():
    targets = torch.tensor([0, 1, 2, 0, 1])
    doubled = Distillation(
        objective="Decoupled", parameters=ObjectiveParameters(target_weight=0.0, non_target_weight=16.0)
    )
    plain = Distillation(objective="Decoupled", parameters=ObjectiveParameters(target_weight=0.0))

    got, once = (losses(Classes(), spec, {"targets": targets}) for spec in (doubled, plain))
    others = losses(Classes(), plain, {"targets": (targets + 1) % 3})

    torch.testing.assert_close(got, 2 * once)
    assert (once - others).abs().min() > 1e-6


def test_label_smoothing_and_weights_replace_the_tasks_loss_on_labels_with_and_without_a_teacher():
    targets, weights = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1.0, 2.0, 0.5])
    term = LabelTerm(0.1, weights)

    alone = losses(Classes(), None, {"targets": targets}, labels=term)
    half = losses(Classes(), Distillation(alpha=0.5), {"targets": targets}, labels=term)
    teacher = losses(Classes(), Distillation(alpha=1.0), {"targets": targets}, labels=term)

    torch.manual_seed(1)
    logits = torch.randn(ROWS, CLASSES)
    want = weights[targets] * torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(alone, want)
    torch.testing.assert_close(half, 0.5 * want + 0.5 * teacher)


def test_items_of_a_row_keep_a_loss_each_until_they_are_added_up():
    torch.manual_seed(2)
    answer, teacher = torch.randn(2, 4, CLASSES), torch.randn(2, 4, CLASSES)
    inside = torch.tensor([[True, True, True, False], [True, False, False, False]])
    compared = {"targets": torch.randint(0, CLASSES, (2, 4)), "teacher": teacher, "inside": inside}

    got = row_losses_of(cast("TaskAdapter", Classes()), Distillation(alpha=0.5))(answer, compared)

    p, q = teacher.softmax(-1), answer.softmax(-1)
    each = 0.5 * (p * (p / q).log()).sum(-1)
    each += 0.5 * torch.nn.functional.cross_entropy(answer.transpose(1, 2), compared["targets"], reduction="none")
    torch.testing.assert_close(got, torch.stack([each[0, :3].sum(), each[1, 0]]))
