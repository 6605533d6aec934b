"""Text classification for the trainer: what TaskAdapter asks for, put together from this folder's modules."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.faults import listed
from distillchain_api.metrics import format_share
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_report.sections.text_classification.predictions import distances, read_root_logits, softmax
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.errors import LabelMismatch
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.tasks.interface import Measurement
from distillchain_trainer.tasks.sequences.adapter import SequenceAdapter
from distillchain_trainer.tasks.sequences.comparison import write_comparison
from distillchain_trainer.tasks.sequences.head import SINGLE_LABEL, Head
from distillchain_trainer.tasks.sequences.heads import renew_head
from distillchain_trainer.tasks.text_classification import chance, rows
from distillchain_trainer.tasks.text_classification.evaluate import Classified

log = logging.getLogger(__name__)


@dataclass
class TextClassificationAdapter(SequenceAdapter):
    """See TaskAdapter."""

    task: TextClassification

    @property
    def head(self) -> Head:
        """One output for each class."""
        task = self.task
        return Head(
            SINGLE_LABEL,
            "choose one class for each text",
            tuple(task.labels),
            texts=len(task.dataset.text),
            max_length=task.max_length,
        )

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        """See TaskAdapter."""
        return rows.read_task_data(
            self.task, endpoint_url=endpoint_url, region=region, folder=folder, warnings=self.notes
        )

    def settle_start(self, student: Loaded, measured: Measurement, *, seed: int) -> None:
        """Keeps a head without class names only if it beats chance in class order and fits no other order better."""
        answers = _classified(measured)
        classes, predicted = answers.classes.tolist(), answers.predicted.tolist()
        # Chance is judged on accuracy, whatever the metric of the task; see chance.py.
        _, needed = chance.chance_to_beat(classes, predicted, metric=self.task.metric)
        accuracy = answers.metrics["accuracy"]
        if accuracy > needed and chance.best_order(classes, predicted, count=len(self.task.labels)) is None:
            log.info("unnamed classes are taken in class order", extra={"student": student.start, "accuracy": accuracy})
            return
        self.notes.add(
            f"student {student.start}: its classes have no names (LABEL_0, ...) and accuracy {format_share(accuracy)} "
            "does not prove that they are in the order of spec.task.labels, so it starts with a new head; write the "
            "names into id2label of its config.json to keep its own"
        )
        # Better untrained than wrong: a head in another order would start by naming the wrong classes.
        renew_head(student.model, seed=seed)

    def targets(self, split: Split) -> Tensor:
        """Class indices [rows]."""
        return torch.from_numpy(np.asarray(split.targets, dtype=np.int64))

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits [rows, classes] with class indices [rows], in nats: [rows]."""
        # float(): under autocast the logits are bfloat16, which has three significant digits.
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Classified:
        """See TaskAdapter."""
        return Classified(self.task, split.name, outputs, np.asarray(split.targets, dtype=np.int64))

    def check_teacher(self, teacher: Loaded, measured: Measurement, *, uri: str, remedy: str) -> None:
        """See TaskAdapter."""
        # First, because classes in another order look like a model at chance, and this message gives the remedy.
        if self.start_is_unproven(teacher) or measured.doubt is not None:
            _check_order(uri, _classified(measured), named=not self.start_is_unproven(teacher))
        super().check_teacher(teacher, measured, uri=uri, remedy=remedy)

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        """See TaskAdapter."""
        write_comparison(
            folder,
            split,
            student=student,
            teacher=teacher,
            read_root=partial(read_root_logits, store, root, validation_sha256=split.facts.sha256) if root else None,
            distances=lambda one, other: distances(softmax(one), softmax(other)),
        )


def _classified(measured: Measurement) -> Classified:
    assert isinstance(measured, Classified)
    return measured


def _check_order(uri: str, measured: Classified, *, named: bool) -> None:
    """Raises: LabelMismatch if classes fit the labels significantly better in another order."""
    classes, predicted, labels = measured.classes, measured.predicted, measured.task.labels
    best = chance.best_order(classes.tolist(), predicted.tolist(), count=len(labels))
    if best is None:
        return
    # The accuracy if class best[i] of the model stands for class i of the task.
    reordered = float((predicted == np.asarray(best)[classes]).mean())
    # The inverse of `best`: which label each class of the model stands for, as id2label has to say it.
    names = [labels[best.index(column)] for column in range(len(labels))]
    found = f"teacher {uri}: accuracy {format_share(measured.metrics['accuracy'])}"
    as_labels, as_names = listed(labels, most=6), listed(names, most=6)
    if named:
        raise LabelMismatch(
            f"{found}, but {format_share(reordered)} if what it calls {as_labels} stands for {as_names}: the names in "
            "id2label of its config.json are probably in another order than its classes, or the labels of the data are "
            "exchanged; correct them"
        )
    raise LabelMismatch(
        f"{found} with LABEL_0, LABEL_1, ... taken as {as_labels}, but {format_share(reordered)} as {as_names}: its "
        "classes are probably in that order; write their names into id2label of its config.json"
    )
