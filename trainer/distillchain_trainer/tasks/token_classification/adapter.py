"""Token classification for the trainer: what TaskAdapter asks for, put together from this folder's modules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from distillchain_api.tasks.token_classification import TokenClassification
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.tasks.interface import Measurement
from distillchain_trainer.tasks.sequences.adapter import SequenceAdapter
from distillchain_trainer.tasks.sequences.heads import renew_head
from distillchain_trainer.tasks.token_classification import rows
from distillchain_trainer.tasks.token_classification.comparison import write_comparison
from distillchain_trainer.tasks.token_classification.evaluate import Tagged
from distillchain_trainer.tasks.token_classification.head import TaggingHead, tagging_head
from distillchain_trainer.tasks.token_classification.lost_words import warn_of_lost_words
from distillchain_trainer.tasks.token_classification.order import check_order, is_in_order
from distillchain_trainer.tasks.token_classification.words import WordTokenizer

log = logging.getLogger(__name__)


@dataclass
class TokenClassificationAdapter(SequenceAdapter):
    """See TaskAdapter. An item of a row is a word."""

    task: TokenClassification

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.task.max_length, warnings=self.notes, bind=WordTokenizer)

    @property
    def head(self) -> TaggingHead:
        """One output for each tag."""
        return tagging_head(self.task)

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        """See TaskAdapter."""
        return rows.read_task_data(
            self.task, endpoint_url=endpoint_url, region=region, folder=folder, warnings=self.notes
        )

    def settle_start(self, student: Loaded, measured: Measurement, *, seed: int) -> None:
        """Keeps a head without names only if it beats chance in the order of the task and fits no other better."""
        tagged = _tagged(measured)
        if tagged.doubt is None and is_in_order(tagged):
            log.info("unnamed tags are taken in the order of the task", extra={"student": student.start})
            return
        self.notes.add(
            f"student {student.start}: its tags have no names (LABEL_0, ...) and its predictions do not prove that "
            "they are in the order of spec.task.labels, so it starts with a new head; write the names into id2label of "
            "its config.json to keep its own"
        )
        # Better untrained than wrong: a head in another order would start by giving the wrong tags.
        renew_head(student.model, seed=seed)

    def encode(self, split: Split, loaded: Loaded, *, check: Callable[[], None]) -> Encoded:
        """See TaskAdapter. Warns of words without a token."""
        encoded = self.encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id, check=check)
        warn_of_lost_words(encoded, split, loaded.tokenizer, max_length=self.task.max_length, warnings=self.notes)
        return encoded

    def outputs_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        """Logits of the first token of each word [rows, width, labels]."""
        logits: Tensor = answer.logits
        positions = items["positions"].unsqueeze(-1).expand(-1, -1, logits.shape[-1])
        return logits.gather(1, positions)

    def targets(self, split: Split) -> Tensor:
        """Indices of tags [words], row after row."""
        return torch.from_numpy(split.flat_targets(np.int64))

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits [rows, width, labels] with tags [rows, width], in nats: [rows, width]."""
        # float(): under autocast the logits are bfloat16, which has three significant digits.
        # The classes must be the second dimension.
        return cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Tagged:
        """See TaskAdapter."""
        return Tagged(self.task, split, outputs)

    def check_teacher(self, teacher: Loaded, measured: Measurement, *, uri: str, remedy: str) -> None:
        """See TaskAdapter."""
        # First, because tags in another order look like a model at chance, and this message gives the remedy.
        if self.start_is_unproven(teacher):
            check_order(uri, _tagged(measured))
        super().check_teacher(teacher, measured, uri=uri, remedy=remedy)

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        """See TaskAdapter. The sentences are chosen by the student's errors alone."""
        write_comparison(folder, split, student=_tagged(student), teacher=_tagged(teacher))


def _tagged(measured: Measurement) -> Tagged:
    assert isinstance(measured, Tagged)
    return measured
