"""What a task type must provide. The rest of the trainer is the same for all of them.

A task type is a folder of `distillchain_trainer.tasks`, named like its module in `distillchain_api.tasks`; its
`__init__.py` defines `bind(task, warnings) -> TaskAdapter`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.resource.student import Architecture
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.errors import GateNotMet
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.memory import Processes


class Measurement(Protocol):
    """A model's outputs on one split, judged by the task's metrics."""

    @property
    def outputs(self) -> NDArray[np.float32]:
        """[rows, ...], in the order of the task."""

    @property
    def metrics(self) -> SplitMetrics:
        """Every metric of the task type."""

    @property
    def doubt(self) -> str | None:
        """Why the model may not have learned the task; None where it beats chance."""

    @property
    def warnings(self) -> list[str]:
        """What the user should know of these outputs, such as a class that is never predicted."""

    def write_predictions(self, path: Path) -> None:
        """One JSON object per row, in the order of the split."""


class TaskAdapter(Protocol):
    """One task of one chain, bound to its spec. Inherit from it to get the defaults of some methods."""

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        """All splits, checked. Files of S3 are downloaded into `folder`. Raises: DataInvalid."""

    def load_teacher(self, checkpoint: Checkpoint) -> Loaded:
        """A model that is fine-tuned on the task. Raises: CheckpointInvalid, LabelMismatch."""

    def load_further_teacher(self, checkpoint: Checkpoint) -> Loaded:
        """One of several teachers, after the first one; by default loaded as that. Raises: as load_teacher."""
        return self.load_teacher(checkpoint)

    def recall_teacher(self, teacher: Loaded) -> Loaded:
        """Takes a teacher that its pass has asked already: tokenizer and configuration, without weights."""
        return teacher

    def load_student(self, checkpoint: Checkpoint, *, tokenizer: Checkpoint | None, seed: int) -> Loaded:
        """A student that starts from a checkpoint, with a new head if it has none. Raises: as load_teacher."""

    def build_student(
        self, architecture: Architecture, tokenizer: Checkpoint, *, seed: int, field: str, processes: Processes
    ) -> Loaded:
        """A student with new weights.

        Args:
            processes: those that train it; it must fit into their memory.
        Raises: CheckpointInvalid.
        """

    def start_is_unproven(self, student: Loaded) -> bool:
        """Whether the student's head must first be measured on validation (`settle_start`); by default not."""
        return False

    def settle_start(self, student: Loaded, measured: Measurement, *, seed: int) -> None:
        """Keeps or replaces the head of a student whose start is unproven."""
        raise AssertionError("every start of this task is proven")

    def before_training(self, student: Loaded, train: Split) -> None:
        """Prepares a loaded student for the training rows; by default nothing."""
        return

    def after_training(self, student: Loaded) -> None:
        """Brings the weights of a trained student into the form in which they are saved; by default nothing.

        The outputs must stay the same. It is called on every rank, before the student is saved and measured.
        """
        return

    def encode(self, split: Split, loaded: Loaded, *, check: Callable[[], None]) -> Encoded:
        """Token ids of a split; `check` may raise between two blocks of rows."""

    def outputs_of(self, answer: Any, items: dict[str, Tensor], /) -> Tensor:
        """The outputs that are stored, compared and measured, from what the model returns.

        Args:
            items: from Encoded.items; {} for a task with one output per row.
        Returns: [rows, ...]; for a task with items [rows, width, ...], of which the engine drops the padding.
        """

    def logits_of(self, answer: Any, items: dict[str, Tensor], /) -> Tensor:
        """What the losses of a training work on, in the same shape as `outputs_of`; by default the same."""
        return self.outputs_of(answer, items)

    def measured_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        """What `measure` judges, in the same shape as `outputs_of`; by default the same."""
        return self.outputs_of(answer, items)

    def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Student and teacher as an objective compares them, both [..., classes]; by default as they are.

        Args:
            logits: from `logits_of`.
            teacher: what `outputs_of` gave for the teacher.
        """
        return logits, teacher

    def mean_of_predictions(self, outputs: Tensor, weights: Tensor, *, temperature: float) -> Tensor:
        """For a task whose outputs are tokens: what stands for the outputs of several teachers.

        Args:
            outputs: [teachers, items, ...], float64.
            weights: [teachers]; they add up to 1.
            temperature: of the objective.
        """
        raise AssertionError("no task of this kind")

    def targets(self, split: Split) -> Tensor:
        """What `label_loss` compares outputs with, [rows, ...]; for a task with items [items, ...], row after row."""

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss on the labels, [rows]; for a task with items [rows, width], in which padding is left out later."""

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Measurement:
        """Judges what `measured_of` gave, [rows, ...] in the order of the task.

        For a task with items they are [items, ...], row after row, and zero for items that were cut off.
        """

    def remember_teacher(self, measured: dict[str, Measurement]) -> None:
        """Takes the measurements of the stage's teacher by split, for metrics that compare the student with it."""
        return

    def check_teacher(self, teacher: Loaded, measured: Measurement, *, uri: str, remedy: str) -> None:
        """Checks that a teacher beats chance. Raises: GateNotMet; LabelMismatch for classes in another order."""
        if measured.doubt is not None:
            raise GateNotMet(f"teacher {uri}: {measured.doubt}; {remedy} or use more validation rows")

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        """Files that a report needs to compare student and teacher.

        Args:
            root: digest of the committed stage that teaches; None: the teacher is the root itself.
        """
