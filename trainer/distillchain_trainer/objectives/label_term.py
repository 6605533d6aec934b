"""Cross-entropy with label smoothing (Szegedy et al. 2016, section 7) and class weights.

With w the weight of the true class y, C classes, smoothing e and p the student's probabilities, a row's loss is
w[y] * ((1 - e) * -ln p[y] + e / C * sum over c of -ln p[c]). torch.nn.functional.cross_entropy weighs each term of the
sum by its own class: beside a class of 3 % of the rows, every row of the others would then teach the rare class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillchain_api.resource.training import Training
from distillchain_trainer.objectives.objective import wide

NO_LABEL = -100  # what torch's cross_entropy leaves out


@dataclass(frozen=True)
class LabelTerm:
    """What `training` says of the loss on the labels.

    The losses are not divided by the sum of the weights, as torch's mean does: then a row would weigh more or less
    depending on the rows that happen to share its batch.

    Attributes:
        smoothing: share of each label that is spread over all classes, from 0 to below 1.
        weights: of the classes [classes], on the device of the losses; None: all weigh 1.
    """

    smoothing: float = 0.0
    weights: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is the cross-entropy that a task has anyway."""
        return self.smoothing == 0 and self.weights is None

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats of each row or word, [...]; 0 where it has no label.

        Args:
            logits: [..., classes].
            targets: class indices [...]; negative: no label.
        """
        labels = torch.where(targets < 0, NO_LABEL, targets).reshape(-1)
        rows = wide(logits).reshape(-1, logits.shape[-1])
        losses = torch.nn.functional.cross_entropy(
            rows, labels, label_smoothing=self.smoothing, ignore_index=NO_LABEL, reduction="none"
        )
        if self.weights is not None:
            # Rows without a label cost 0, whatever they weigh.
            losses = losses * self.weights.to(rows.dtype)[labels.clamp(min=0)]
        return losses.reshape(targets.shape)


def label_term(training: Training, classes: Sequence[str], targets: Tensor, *, device: torch.device) -> LabelTerm:
    """The term for some training rows.

    Args:
        classes: names of the classes, in their order.
        targets: class indices of the training rows [...]; negative: no label.
    """
    weights = None
    if training.balanced_classes:
        weights = balanced_weights(targets, len(classes))
    elif training.class_weights:
        weights = stated_weights(training.class_weights, classes)
    return LabelTerm(training.label_smoothing, None if weights is None else weights.to(device))


def stated_weights(stated: Mapping[str, float], classes: Sequence[str]) -> Tensor:
    """Weights by name as a tensor [classes]; 1 for a class that is not named."""
    return torch.tensor([stated.get(name, 1.0) for name in classes])


def balanced_weights(targets: Tensor, classes: int) -> Tensor:
    """Rows / (classes * rows of the class), [classes], as scikit-learn's class_weight="balanced"; 0 without a row.

    The mean over the rows is 1 if every class has one, so the loss on the labels keeps its weight beside the teacher's.
    """
    counts = torch.bincount(targets[targets >= 0].reshape(-1), minlength=classes).double()
    weights = counts.sum() / (classes * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0).float()
