"""Language modelling for the trainer: what TaskAdapter asks for, put together from this folder's modules."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distillchain_api.resource.student import Architecture
from distillchain_api.tasks.causal_lm import CausalLM
from distillchain_api.wire.records import EXAMPLE_CHARS, EXAMPLES, TEACHER_PREDICTIONS_FILE
from distillchain_report.sections.causal_lm.predictions import read_root_log_probabilities
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split, TaskData
from distillchain_trainer.engine.device.precision import device_of
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.encoding.encoding import Encoder
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.models.memory import Processes
from distillchain_trainer.models.tokenizers import vocabulary_size
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.causal_lm import models, rows
from distillchain_trainer.tasks.causal_lm.evaluate import LOG_PROBABILITY_DIGITS, Predicted
from distillchain_trainer.tasks.causal_lm.mean_of_teachers import mean_of_teachers
from distillchain_trainer.tasks.causal_lm.outputs import (
    at_positions,
    measured_outputs,
    split_teacher_outputs,
    teacher_outputs,
)
from distillchain_trainer.tasks.causal_lm.selected import selected_log_probabilities, target_log_probabilities
from distillchain_trainer.tasks.causal_lm.tokens import NextTokenTokenizer, reading_hash
from distillchain_trainer.tasks.example_texts import may_keep_texts, write_examples
from distillchain_trainer.tasks.interface import Measurement, TaskAdapter

# Logits of one forward pass, as a number of values: 1 GiB in float32 on a CPU, 4 GiB in bfloat16 on a GPU, where larger
# passes compute no faster (a pass of 16,000 tokens keeps any GPU busy).
CPU_LOGITS, GPU_LOGITS = 2**28, 2**31


@dataclass
class CausalLMAdapter(TaskAdapter):
    """See TaskAdapter. Teacher and student of a stage share one tokenizer."""

    task: CausalLM
    notes: StageWarnings
    encoder: Encoder = field(init=False)
    _teacher: Loaded | None = None
    _tokenizer_name: str = ""
    """What messages call the checkpoint of the tokenizer."""
    _reader: Loaded | None = None
    """A model of the stage, for its tokenizer."""
    _vocabulary: int = 0
    """Number of ids that the tokenizer knows."""
    _encoded: dict[str, Encoded] = field(default_factory=dict)
    """By split: which tokens are predicted."""
    _taught: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By split: the ids that the teacher finds most probable."""

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.task.max_length, warnings=self.notes, bind=self._bind)

    def _bind(self, tokenizer: Any, max_length: int, *, with_kinds: bool) -> NextTokenTokenizer:
        form = rows.form_of(self.task.dataset)
        return NextTokenTokenizer(form, tokenizer, max_length, with_kinds=with_kinds, name=self._tokenizer_name)

    def read_data(self, *, endpoint_url: str | None, region: str | None, folder: Path) -> TaskData:
        """See TaskAdapter."""
        return rows.read_task_data(
            self.task, endpoint_url=endpoint_url, region=region, folder=folder, warnings=self.notes
        )

    def load_teacher(self, checkpoint: Checkpoint) -> Loaded:
        """See TaskAdapter."""
        self._teacher = self._uses(models.load_teacher(checkpoint, self.task, warnings=self.notes))
        return self._teacher

    def load_further_teacher(self, checkpoint: Checkpoint) -> Loaded:
        """See TaskAdapter. It reads texts with the tokenizer of the first teacher."""
        assert self._teacher is not None
        further = models.load_teacher(checkpoint, self.task, warnings=self.notes)
        what = f"{checkpoint.field}: {checkpoint.uri}"
        found = models.with_tokenizer_of(self._teacher, further, what=what, warnings=self.notes, is_trained=False)
        own, used = reading_hash(further.tokenizer), reading_hash(found.tokenizer)
        return self._uses(found if own == used else replace(found, reads_with=used))

    def recall_teacher(self, teacher: Loaded) -> Loaded:
        """See TaskAdapter."""
        self._teacher = self._uses(teacher)
        return self._teacher

    def load_student(self, checkpoint: Checkpoint, *, tokenizer: Checkpoint | None, seed: int) -> Loaded:
        """See TaskAdapter. No weight is new, so the seed decides nothing."""
        return self._uses(
            models.load_student(checkpoint, self.task, tokenizer=tokenizer, teacher=self._teacher, warnings=self.notes)
        )

    def build_student(
        self, architecture: Architecture, tokenizer: Checkpoint, *, seed: int, field: str, processes: Processes
    ) -> Loaded:
        """See TaskAdapter."""
        return self._uses(
            models.build_student(
                architecture,
                tokenizer,
                self.task,
                teacher=self._teacher,
                seed=seed,
                field=field,
                processes=processes,
                warnings=self.notes,
            )
        )

    def _uses(self, loaded: Loaded) -> Loaded:
        # The first model of a stage is its teacher, whose tokenizer the student takes over.
        self._tokenizer_name = self._tokenizer_name or loaded.start
        self._reader = loaded
        # Kept, because a tokenizer of 128,000 words takes a tenth of a second for it, and each batch needs it.
        self._vocabulary = vocabulary_size(loaded.tokenizer)
        return loaded

    def encode(self, split: Split, loaded: Loaded, *, check: Callable[[], None]) -> Encoded:
        """See TaskAdapter. Raises: DataInvalid if no row has a token to predict within maxLength."""
        encoded = self._items_of(split, loaded, check)
        # Not `cpu`: on ranks that do not load a split model, its weights are on the meta device.
        most = GPU_LOGITS if device_of(loaded.model).type == "cuda" else CPU_LOGITS
        vocabulary = int(loaded.model.config.get_text_config().vocab_size)
        # Padded on the right: what comes later changes no answer of these models, and positions count from the left.
        return replace(encoded, pad_left=False, most_tokens=max(1, most // vocabulary))

    def _items_of(self, split: Split, loaded: Loaded, check: Callable[[], None] = lambda: None) -> Encoded:
        encoded = self.encoder.encode(split, loaded.tokenizer, pad_id=loaded.pad_id, check=check)
        if split.name not in self._encoded:
            self._note_empty_rows(split, encoded)
            self._encoded[split.name] = encoded
        return encoded

    def _note_empty_rows(self, split: Split, encoded: Encoded) -> None:
        assert encoded.weights is not None
        empty = int((encoded.weights == 0).sum())
        if not empty:
            return
        if empty == len(split):
            raise DataInvalid(
                f"spec.task.maxLength: got {self.task.max_length}, which leaves nothing to predict in all {empty} "
                f"{split.name} rows; raise it, or shorten the prompts"
            )
        self.notes.add(
            f"spec.task.maxLength: {empty} of {len(split)} {split.name} rows have nothing to predict within "
            f"{self.task.max_length} tokens and do not count; raise it, or shorten the prompts"
        )

    def outputs_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        """The teacher's most probable tokens and their probabilities; see outputs.py."""
        k = min(self.task.top_k, self._vocabulary)
        return teacher_outputs(answer.logits, items["positions"], items["item_ids"], k=k, tokens=self._vocabulary)

    def measured_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        """The log-probability of each token, and the most probable token."""
        return measured_outputs(answer.logits, items["positions"], items["item_ids"])

    def logits_of(self, answer: Any, items: dict[str, Tensor]) -> Tensor:
        """Logits of the items, [rows, width, vocabulary]."""
        logits: Tensor = answer.logits
        # In a plain text, item i is at position i; a copy of all logits would change nothing.
        return logits if self.task.dataset.text is not None else at_positions(logits, items["positions"])

    def teacher_pair(self, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the teacher's k most probable tokens and of all others together, [..., k + 1]."""
        ids, theirs = split_teacher_outputs(teacher)
        if ids.shape[-1] == self._vocabulary:
            # Nothing is left but padding rows of the embedding. A teacher without such rows gives them probability 0,
            # which would be an infinite loss for a student that has them.
            logits = logits[..., : self._vocabulary]
        ours = selected_log_probabilities(logits, ids)
        # Where k is the whole vocabulary, there are no other tokens.
        return ours, theirs[..., : ours.shape[-1]]

    def mean_of_predictions(self, outputs: Tensor, weights: Tensor, *, temperature: float) -> Tensor:
        """See TaskAdapter."""
        return mean_of_teachers(outputs, weights, temperature=temperature, vocabulary=self._vocabulary)

    def targets(self, split: Split) -> Tensor:
        """Ids of the tokens to predict [tokens]."""
        assert self._reader is not None
        found = self._items_of(split, self._reader).item_ids
        assert found is not None
        return found.long()

    def label_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits [rows, width, vocabulary] with token ids [rows, width], in nats: [rows, width]."""
        return -target_log_probabilities(logits, targets)

    def measure(self, split: Split, outputs: NDArray[np.float32]) -> Predicted:
        """See TaskAdapter."""
        encoded = self._encoded[split.name]
        assert encoded.item_starts is not None
        return Predicted(
            outputs,
            starts=encoded.item_starts.numpy(),
            targets=self.targets(split).numpy(),
            vocabulary=self._vocabulary,
            teacher=self._taught.get(split.name),
        )

    def remember_teacher(self, measured: dict[str, Measurement]) -> None:
        """See TaskAdapter. From now on, measurements have the agreement with the teacher."""
        self._taught = {name: _predicted(found).most_probable for name, found in measured.items()}

    def write_comparison(
        self, folder: Path, store: Store, split: Split, *, student: Measurement, teacher: Measurement, root: str | None
    ) -> None:
        """See TaskAdapter. The example rows are those whose probability has been lost most since the root teacher.

        The report shows the same rows of the last student, whatever its position in the chain.
        """
        teacher.write_predictions(folder / TEACHER_PREDICTIONS_FILE)
        # Predictions hold no texts, so they are written all the same.
        if not may_keep_texts():
            return
        of_root = root and read_root_log_probabilities(store, root, validation_sha256=split.facts.sha256)
        ours, theirs = (_predicted(measured).row_log_probabilities for measured in (student, teacher))
        if isinstance(of_root, np.ndarray) and of_root.shape == theirs.shape:
            theirs = of_root
        # Rounded as in the files that the report reads, so that it finds the same rows.
        lost = theirs.round(LOG_PROBABILITY_DIGITS) - ours.round(LOG_PROBABILITY_DIGITS)
        chosen = np.argsort(-lost, kind="stable")[:EXAMPLES].tolist()
        write_examples(folder, chosen, lambda row: [text[:EXAMPLE_CHARS] for text in self._shown(split.texts[row])])

    def _shown(self, texts: tuple[str, ...]) -> list[str]:
        """The texts of a row as a reader expects them: a chat as its messages."""
        if self.task.dataset.messages is None:
            return list(texts)
        return [f"{message['role']}: {message['content']}" for message in json.loads(texts[0])]


def _predicted(measured: Measurement) -> Predicted:
    assert isinstance(measured, Predicted)
    return measured
