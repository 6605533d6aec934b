"""The training rows as tensors: token ids, what the labels say, and what the teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillchain_trainer.engine.encoding import Encoded
from distillchain_trainer.engine.teacher_outputs import TeacherOutputs


@dataclass(frozen=True)
class TrainingRows:
    """All rows of a training. On a GPU, batches are put together there, and no step waits for the host.

    Attributes:
        targets: what the loss on the labels compares with, [rows, ...].
        answers: the teacher's outputs, [distinct texts, ...], in the teacher's order; None: it is not asked.
        place: for each row the index of its text in `answers` [rows].
        columns: the teacher's columns in the order of the task; None: they are in order.
    """

    encoded: Encoded
    targets: Tensor
    answers: Tensor | None = None
    place: Tensor | None = None
    columns: Tensor | None = None

    @classmethod
    def of(cls, encoded: Encoded, targets: Tensor, teacher: TeacherOutputs | None) -> TrainingRows:
        """From what the teacher has answered."""
        if teacher is None:
            return cls(encoded, targets)
        columns = None if teacher.columns is None else torch.tensor(teacher.columns)
        return cls(encoded, targets, torch.from_numpy(teacher.values), torch.from_numpy(teacher.place), columns)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""
        return self.encoded.lengths

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        own = (self.targets, self.answers, self.place, self.columns)
        return self.encoded.nbytes + sum(tensor.nbytes for tensor in own if tensor is not None)

    def to(self, device: torch.device) -> TrainingRows:
        """The same rows on another device."""
        return TrainingRows(
            self.encoded.to(device),
            self.targets.to(device),
            None if self.answers is None else self.answers.to(device),
            None if self.place is None else self.place.to(device),
            None if self.columns is None else self.columns.to(device),
        )

    def batch(self, rows: Tensor, *, width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs of the model for some rows [rows, width], and what the loss compares its answer with [rows, ...]."""
        compared = {"targets": self.targets[rows]}
        if self.answers is not None and self.place is not None:
            answers = self.answers[self.place[rows]]
            compared["teacher"] = answers if self.columns is None else answers[:, self.columns]
        return self.encoded.batch(rows, width=width), compared
