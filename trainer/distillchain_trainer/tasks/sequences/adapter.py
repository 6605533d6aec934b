"""What the adapters of all sequence tasks have in common: their models, and how their texts are encoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distillchain_api.resource.student import Architecture
from distillchain_api.task import Task
from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.interface import TaskAdapter
from distillchain_trainer.tasks.sequences import heads
from distillchain_trainer.tasks.sequences.head import Head


@dataclass
class SequenceAdapter(TaskAdapter):
    """See TaskAdapter. A task type says which head it needs, and how rows are read, compared and measured."""

    task: Task
    notes: StageWarnings
    encoder: Encoder = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.task.max_length, warnings=self.notes)

    @property
    def head(self) -> Head:
        """The head that the task needs."""
        raise NotImplementedError

    def load_teacher(self, checkpoint: Checkpoint) -> Loaded:
        """See TaskAdapter."""
        return heads.load_teacher(checkpoint, self.head, warnings=self.notes)

    def load_student(self, checkpoint: Checkpoint, *, tokenizer: Checkpoint | None, seed: int) -> Loaded:
        """See TaskAdapter."""
        return heads.load_student(checkpoint, self.head, tokenizer=tokenizer, seed=seed, warnings=self.notes)

    def build_student(
        self, architecture: Architecture, tokenizer: Checkpoint, *, seed: int, field: str, processes: Processes
    ) -> Loaded:
        """See TaskAdapter."""
        return heads.build_student(
            architecture,
            tokenizer,
            self.head,
            seed=seed,
            field=field,
            processes=processes,
            warnings=self.notes,
        )

    def start_is_unproven(self, student: Loaded) -> bool:
        """A head with the default class names LABEL_0.. does not say which class is which."""
        return isinstance(student, heads.SequenceModel) and not student.named

    def encode(self, split: Split, loaded: Loaded, *, check: Callable[[], None]) -> Encoded:
        """See TaskAdapter."""
        return self.encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id, check=check)

    def outputs_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        """Logits [rows, outputs]; a row has no items."""
        logits: Tensor = answer.logits
        return logits
