"""Regression for the trainer: what TaskAdapter asks for, put together from this folder's modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.tasks.regression import Regression
from distillchain_report.sections.regression.predictions import read_root_outputs
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.tasks.interface import Measurement
from distillchain_trainer.tasks.regression import rows
from distillchain_trainer.tasks.regression.evaluate import Predicted
from distillchain_trainer.tasks.regression.scale import Scale, fold, put_in_standard_units
from distillchain_trainer.tasks.sequences.adapter import SequenceAdapter
from distillchain_trainer.tasks.sequences.comparison import write_comparison
from distillchain_trainer.tasks.sequences.head import REGRESSION, Head


@dataclass
class RegressionAdapter(SequenceAdapter):
    """See TaskAdapter."""

    task: Regression
    scale: Scale = field(default=Scale(0.0, 1.0))
    """Of the training numbers. Losses are measured in its deviation, whatever the unit of the data."""

    @property
    def head(self) -> Head:
        """One output, named like the column of the numbers."""
        dataset = self.task.dataset
        return Head(
            REGRESSION,
            "give one number for each text",
            (dataset.label,),
            texts=len(dataset.text),
            max_length=self.task.max_length,
        )

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        """See TaskAdapter."""
        return rows.read_task_data(
            self.task, endpoint_url=endpoint_url, region=region, folder=folder, warnings=self.notes
        )

    def before_training(self, student: Loaded, train: Split) -> None:
        """Lets the head train in standard units."""
        self.scale = Scale.of(train.targets)
        put_in_standard_units(student, self.scale)

    def after_training(self, student: Loaded) -> None:
        """Gives the head's weights the units of the data."""
        fold(student.model)

    def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both in standard units, so that `alpha` and the learning rate mean the same for every data set."""
        return self._standard(logits), self._standard(teacher)

    def targets(self, split: Split) -> Tensor:
        """Numbers [rows]."""
        return torch.from_numpy(np.asarray(split.targets, dtype=np.float32))

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared error in standard units: [rows]."""
        return (self._standard(logits)[:, 0] - self._standard(targets)).square()

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Predicted:
        """See TaskAdapter."""
        return Predicted(self.task, split.name, outputs, np.asarray(split.targets, dtype=np.float64))

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        """See TaskAdapter."""
        write_comparison(
            folder,
            split,
            student=student,
            teacher=teacher,
            read_root=partial(read_root_outputs, store, root, validation_sha256=split.facts.sha256) if root else None,
            distances=lambda one, other: np.abs(one.astype(np.float64) - other)[:, 0],
        )

    def _standard(self, numbers: Tensor) -> Tensor:
        # float(): under autocast the outputs may be bfloat16, which has three significant digits.
        return (numbers.float() - self.scale.mean) / self.scale.deviation
