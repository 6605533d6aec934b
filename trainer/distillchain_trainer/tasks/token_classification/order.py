"""Whether the outputs of a tagger without names for its tags are in the order of the task."""

from __future__ import annotations

import numpy as np

from distillchain_api.tasks.token_classification import OUTSIDE
from distillchain_trainer.errors import LabelMismatch
from distillchain_trainer.tasks.label_names import shorten
from distillchain_trainer.tasks.text_classification.chance import best_order
from distillchain_trainer.tasks.token_classification.evaluate import Tagged


def is_in_order(tagged: Tagged) -> bool:
    """Whether no other order of the outputs fits the labels significantly better."""
    return _better_order(tagged) is None


def check_order(uri: str, tagged: Tagged) -> None:
    """Raises: LabelMismatch if the tags fit the labels significantly better in another order."""
    best = _better_order(tagged)
    if best is None:
        return
    labels = tagged.task.labels
    # The inverse of `best`: which tag each output of the model stands for, as id2label has to say it.
    names = [labels[best.index(column)] for column in range(len(labels))]
    raise LabelMismatch(
        f"teacher {uri}: LABEL_0, LABEL_1, ... fit {tagged.split.name} better as {shorten(names)} than as "
        f"{shorten(labels)}: its tags are probably in that order; write their names into id2label of its config.json"
    )


def _better_order(tagged: Tagged) -> tuple[int, ...] | None:
    """See best_order. Only words in entities count: beside the many O, an exchange of two kinds would not show."""
    answers = tagged.answers
    in_entities = answers.truth != tagged.task.labels.index(OUTSIDE)
    truth, predicted = answers.truth[in_entities], answers.predicted[in_entities]
    assert len(np.unique(truth)), "a validation split without entities is refused when it is read"
    return best_order(truth.tolist(), predicted.tolist(), count=len(tagged.task.labels))
