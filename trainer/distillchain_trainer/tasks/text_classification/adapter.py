"""Text classification for the trainer: what TaskAdapter asks for, put together from this folder's modules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every reader of torch code knows
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.metrics import format_share
from distillchain_api.resource.spec import Architecture
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.engine.encoded import Encoded
from distillchain_trainer.engine.encoding import Encoder
from distillchain_trainer.errors import GateNotMet, LabelMismatch
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.interface import Measurement, TaskAdapter
from distillchain_trainer.tasks.text_classification import chance, heads, rows
from distillchain_trainer.tasks.text_classification.comparison import write_comparison
from distillchain_trainer.tasks.text_classification.evaluate import Classified

log = logging.getLogger(__name__)


@dataclass
class TextClassificationAdapter(TaskAdapter):
    """See TaskAdapter."""

    task: TextClassification
    notes: StageWarnings
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.task.max_length, warnings=self.notes)

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        """See TaskAdapter."""
        return rows.read_task_data(
            self.task, endpoint_url=endpoint_url, region=region, folder=folder, warnings=self.notes
        )

    def load_teacher(self, checkpoint: Checkpoint) -> Loaded:
        """See TaskAdapter."""
        return heads.load_teacher(checkpoint, self.task, warnings=self.notes)

    def load_student(self, checkpoint: Checkpoint, *, tokenizer: Checkpoint | None, seed: int) -> Loaded:
        """See TaskAdapter."""
        return heads.load_student(checkpoint, self.task, tokenizer=tokenizer, seed=seed, warnings=self.notes)

    def build_student(self, architecture: Architecture, tokenizer: Checkpoint, *, seed: int, field: str) -> Loaded:
        """See TaskAdapter."""
        return heads.build_student(architecture, tokenizer, self.task, seed=seed, field=field, warnings=self.notes)

    def start_is_unproven(self, student: Loaded) -> bool:
        """A head with the default class names LABEL_0.. does not say which class is which."""
        return isinstance(student, heads.Classifier) and not student.named

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
        heads.renew_head(student.model, seed=seed)

    def encode(self, split: Split, loaded: Loaded, *, check: Callable[[], None]) -> Encoded:
        """See TaskAdapter."""
        return self.encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id, check=check)

    def outputs_of(self, answer: Any, _items: dict[str, Tensor], /) -> Tensor:
        """Logits [rows, classes]."""
        logits: Tensor = answer.logits
        return logits

    def targets(self, split: Split) -> Tensor:
        """Class indices [rows]."""
        return torch.tensor(split.targets)

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits [rows, classes] with class indices [rows], in nats: [rows]."""
        # float(): under autocast the logits are bfloat16, which has three significant digits.
        return F.cross_entropy(logits.float(), targets, reduction="none")

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Classified:
        """See TaskAdapter."""
        return Classified(self.task, split.name, outputs, np.asarray(split.targets, dtype=np.int64))

    def check_teacher(self, teacher: Loaded, measured: Measurement, *, uri: str, remedy: str) -> None:
        """See TaskAdapter."""
        # First, because classes in another order look like a model at chance, and this message gives the remedy.
        if self.start_is_unproven(teacher):
            _check_order(uri, _classified(measured))
        if measured.doubt is not None:
            raise GateNotMet(f"teacher {uri}: {measured.doubt}; {remedy} or use more validation rows")

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        """See TaskAdapter."""
        write_comparison(folder, store, split, student=student, teacher=teacher, root=root)


def _classified(measured: Measurement) -> Classified:
    assert isinstance(measured, Classified)
    return measured


def _check_order(uri: str, measured: Classified) -> None:
    """Raises: LabelMismatch if unnamed classes fit the labels significantly better in another order."""
    classes, predicted, labels = measured.classes, measured.predicted, measured.task.labels
    best = chance.best_order(classes.tolist(), predicted.tolist(), count=len(labels))
    if best is None:
        return
    # The accuracy if class best[i] of the model stands for class i of the task.
    reordered = float((predicted == np.asarray(best)[classes]).mean())
    # The inverse of `best`: which label each class of the model stands for, as id2label has to say it.
    names = [labels[best.index(column)] for column in range(len(labels))]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    raise LabelMismatch(
        f"teacher {uri}: accuracy {format_share(measured.metrics['accuracy'])} with LABEL_0, LABEL_1, ... taken as "
        f"{', '.join(labels[:6])}{', ...' if len(labels) > 6 else ''}, but {format_share(reordered)} as {shown}: its "
        "classes are probably in that order; write their names into id2label of its config.json"
    )
