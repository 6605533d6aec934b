"""Multi-label classification for the trainer: what TaskAdapter asks for, put together from this folder's modules."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.metrics import format_share
from distillchain_api.tasks.multi_label_classification import MultiLabelClassification
from distillchain_report.sections.multi_label_classification.predictions import (
    distances,
    probabilities,
    read_root_logits,
)
from distillchain_report.sections.multi_label_classification.scores import metric_value
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.errors import LabelMismatch
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.tasks.interface import Measurement
from distillchain_trainer.tasks.label_names import shorten
from distillchain_trainer.tasks.multi_label_classification import chance, rows
from distillchain_trainer.tasks.multi_label_classification.evaluate import MultiLabelled, table_of
from distillchain_trainer.tasks.sequences.adapter import SequenceAdapter
from distillchain_trainer.tasks.sequences.comparison import write_comparison
from distillchain_trainer.tasks.sequences.head import MULTI_LABEL, Head
from distillchain_trainer.tasks.sequences.heads import renew_head

log = logging.getLogger(__name__)


@dataclass
class MultiLabelClassificationAdapter(SequenceAdapter):
    """See TaskAdapter."""

    task: MultiLabelClassification

    @property
    def head(self) -> Head:
        """One output for each label."""
        task = self.task
        return Head(
            MULTI_LABEL,
            "choose any number of labels for each text",
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
        """Keeps a head without label names only if it beats chance in the task's order and fits no other one better."""
        answers = _labelled(measured)
        if answers.doubt is None and chance.best_order(answers.truth, answers.outputs) is None:
            log.info("unnamed labels are taken in their order", extra={"student": student.start})
            return
        micro_f1 = format_share(answers.metrics["microF1"])
        self.notes.add(
            f"student {student.start}: its labels have no names (LABEL_0, ...) and micro F1 "
            f"{micro_f1} does not prove that they are in the order of spec.task.labels, "
            "so it starts with a new head; write the names into id2label of its config.json to keep its own"
        )
        # Better untrained than wrong: a head in another order would start by naming the wrong labels.
        renew_head(student.model, seed=seed)

    def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Each label as two classes, yes and no, [rows, labels, 2]: the logits z and 0 give yes sigmoid(z).

        An objective over probabilities then treats each label as a distribution of its own. LogitMSE becomes half the
        squared difference, because the second logit never differs.
        """
        return _yes_and_no(logits), _yes_and_no(teacher)

    def targets(self, split: Split) -> Tensor:
        """0 or 1 for each label, [rows, labels]; bytes, because a row may have a thousand labels."""
        return torch.from_numpy(table_of(split.targets, len(self.task.labels)))

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over the labels, in nats: [rows]."""
        # float(): under autocast the logits are bfloat16, which has three significant digits.
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), targets.float(), reduction="none"
        ).mean(-1)

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> MultiLabelled:
        """See TaskAdapter."""
        return MultiLabelled(self.task, split.name, outputs, table_of(split.targets, len(self.task.labels)))

    def check_teacher(self, teacher: Loaded, measured: Measurement, *, uri: str, remedy: str) -> None:
        """See TaskAdapter."""
        # First, because labels in another order look like a model at chance, and this message gives the remedy.
        if self.start_is_unproven(teacher):
            _check_order(uri, _labelled(measured))
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
            distances=lambda one, other: distances(probabilities(one), probabilities(other)),
        )


def _yes_and_no(logits: Tensor) -> Tensor:
    return torch.stack([logits, torch.zeros_like(logits)], dim=-1)


def _labelled(measured: Measurement) -> MultiLabelled:
    assert isinstance(measured, MultiLabelled)
    return measured


def _check_order(uri: str, measured: MultiLabelled) -> None:
    """Raises: LabelMismatch if unnamed labels fit significantly better in another order."""
    best = chance.best_order(measured.truth, measured.outputs)
    if best is None:
        return
    labels = measured.task.labels
    reordered = metric_value("microF1", measured.truth, measured.predicted[:, list(best)])
    # The inverse of `best`: which label each output of the model stands for, as id2label has to say it.
    names = [labels[best.index(column)] for column in range(len(labels))]
    raise LabelMismatch(
        f"teacher {uri}: micro F1 {format_share(measured.metrics['microF1'])} with LABEL_0, LABEL_1, ... taken as "
        f"{shorten(labels)}, but {format_share(reordered)} as {shorten(names)}: its labels are probably in that order; "
        "write their names into id2label of its config.json"
    )
