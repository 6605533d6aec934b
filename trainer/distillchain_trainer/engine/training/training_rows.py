"""The training rows as tensors: token ids, what the labels say, and what the teacher says."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillchain_trainer.engine.encoding.encoded import Encoded, at_places
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs


@dataclass(frozen=True)
class TrainingRows:
    """All rows of a training. On a GPU, batches are put together there, and no step waits for the host.

    Attributes:
        targets: what the loss on the labels compares with: [rows, ...], or for a task with items [items, ...].
        answers: the teacher's outputs, [distinct texts, ...] or [items of the distinct texts, ...], in the teacher's
            order; None: it is not asked.
        place: for each row the index of its text in `answers`, or in `answer_starts` [rows].
        columns: the teacher's columns in the order of the task; None: they are in order.
        answer_starts: where the items of each distinct text start in `answers`; None: the task has no items.
        labelled: which rows have a label [rows]; None: all of them. The targets of the others are zeros.
    """

    encoded: Encoded
    targets: Tensor
    answers: Tensor | None = None
    place: Tensor | None = None
    columns: Tensor | None = None
    answer_starts: Tensor | None = None
    labelled: Tensor | None = None

    @classmethod
    def of(cls, encoded: Encoded, targets: Tensor, teacher: TeacherOutputs | None) -> TrainingRows:
        """From what the teacher has answered. Items for which it has no answer count as cut off.

        Args:
            targets: of the rows or items that have a label, which come first.
        """
        labelled = None
        if len(targets) < encoded.output_count:
            assert teacher is not None, "a row without a label has only the teacher's answer"
            labelled = torch.arange(encoded.output_count) < len(targets)
            zeros = targets.new_zeros((encoded.output_count - len(targets), *targets.shape[1:]))
            targets = torch.cat([targets, zeros])
        if teacher is None:
            return cls(encoded, targets)
        if teacher.answered is not None:
            encoded = encoded.without_items(~teacher.answered)
        return cls(
            encoded,
            targets,
            torch.from_numpy(teacher.values),
            torch.from_numpy(teacher.place),
            None if teacher.columns is None else torch.tensor(teacher.columns),
            None if teacher.starts is None else torch.from_numpy(teacher.starts),
            labelled,
        )

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each row."""
        return self.encoded.lengths

    @property
    def weights(self) -> NDArray[np.int32] | None:
        """Items of each row that are compared; None: one output per row."""
        return self.encoded.weights

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        own = (self.targets, self.answers, self.place, self.columns, self.answer_starts, self.labelled)
        return self.encoded.nbytes + sum(tensor.nbytes for tensor in own if tensor is not None)

    def to(self, device: torch.device) -> TrainingRows:
        """The same rows on another device."""
        return replace(
            self,
            encoded=self.encoded.to(device),
            targets=self.targets.to(device),
            answers=None if self.answers is None else self.answers.to(device),
            place=None if self.place is None else self.place.to(device),
            columns=None if self.columns is None else self.columns.to(device),
            answer_starts=None if self.answer_starts is None else self.answer_starts.to(device),
            labelled=None if self.labelled is None else self.labelled.to(device),
        )

    def batch(self, rows: Tensor, *, width: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs of the model for some rows [rows, width], and what the loss compares its answer with.

        The second has `targets` and `teacher`, [rows, ...], and `labelled` [rows] if some rows have no label. For a
        task with items they are [rows, width, ...], beside what Encoded.items returns.
        """
        inputs = self.encoded.batch(rows, width=width)
        if self.encoded.item_starts is None:
            targets, places = self.targets[rows], None if self.place is None else self.place[rows]
            compared = {"targets": targets}
            if self.labelled is not None:
                compared["labelled"] = self.labelled[rows]
        else:
            items, _ = self.encoded.item_places(rows, width=width)
            compared = self.encoded.items(rows, width=width) | {"targets": at_places(self.targets, items)}
            places = self._places_of(rows, items - self.encoded.item_starts[rows].unsqueeze(1))
        if self.answers is not None and places is not None:
            answers = at_places(self.answers, places)
            compared["teacher"] = answers if self.columns is None else answers[..., self.columns]
        return inputs, compared

    def _places_of(self, rows: Tensor, numbers: Tensor) -> Tensor | None:
        """Indices in `answers` of items with these numbers within their rows, [rows, width]."""
        if self.answers is None or self.place is None or self.answer_starts is None:
            return None
        first = self.answer_starts[self.place[rows]].unsqueeze(1)
        # Clamped, because the numbers of padding are not those of items of the row.
        return (first + numbers).clamp(0, max(len(self.answers) - 1, 0))
