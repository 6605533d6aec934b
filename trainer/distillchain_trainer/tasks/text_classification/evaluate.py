"""How good a model is on a split: accuracy, macro F1, predictions and speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillchain_api.resource.spec import Precision
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_trainer.engine.encode import Encoded, forward
from distillchain_trainer.errors import CheckpointInvalid, TrainingDiverged
from distillchain_trainer.models.checkpoints import Checkpoint
from distillchain_trainer.tasks.text_classification.rows import Split


@dataclass(frozen=True)
class Measurement:
    """A model on one split; logits [rows, classes] are in the order of the task."""

    logits: NDArray[np.float32]
    classes: NDArray[np.int64]
    elapsed_s: float

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class of each row; the first one of equals."""
        best: NDArray[np.int64] = self.logits.argmax(-1)
        return best

    @property
    def metrics(self) -> SplitMetrics:
        """accuracy and macroF1; a class that never occurs counts for macro F1 only when it was predicted."""
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "accuracy": float(accuracy_score(self.classes, self.predicted)),
            "macroF1": float(f1_score(self.classes, self.predicted, average="macro", zero_division=0.0)),
        }

    @property
    def examples_per_second(self) -> float:
        """Forward passes of whole texts."""
        return len(self.classes) / max(self.elapsed_s, 1e-9)


def measure(
    model: Any,
    split: Split,
    encoded: Encoded,
    *,
    columns: Sequence[int],
    precision: Precision,
    on_batch: Callable[[int, int], None],
    given: Checkpoint | None = None,
) -> Measurement:
    """The model's answers to a split. `columns` puts its classes in the order of the task.

    Raises: see check_numbers.
    """
    logits = np.zeros((len(split), len(columns)), dtype=np.float32)
    elapsed_s, done = 0.0, 0
    for answer in forward(model, encoded, precision=precision):
        logits[answer.rows] = answer.logits[:, list(columns)]
        elapsed_s += answer.elapsed_s
        done += len(answer.rows)
        on_batch(done, len(split))
    check_numbers(logits, split.name, given=given)
    return Measurement(logits, np.asarray(split.classes, dtype=np.int64), elapsed_s)


def check_numbers(logits: NDArray[np.float32], split: str, *, given: Checkpoint | None) -> None:
    """Raises, when a logit is none: CheckpointInvalid for a checkpoint as it was given, else TrainingDiverged."""
    if np.isfinite(logits).all():
        return
    what = f"outputs on {split} are not numbers (NaN or infinite)"
    if given is not None:
        raise CheckpointInvalid(f"{given.field}: {given.uri}: its {what}; copy it again, or use precision float32")
    raise TrainingDiverged(
        f"the student's {what}; lower training.learningRate, add warmupRatio, or use precision float32"
    )


def write_predictions(path: Path, measured: Measurement, labels: Sequence[str]) -> None:
    """One JSON object a row, in the order of the split."""
    with path.open("w", encoding="utf-8") as file:
        rows = zip(measured.classes, measured.predicted, measured.logits, strict=True)
        for row, (truth, guess, logits) in enumerate(rows):
            line = {
                "row": row,
                "label": labels[truth],
                "predicted": labels[guess],
                "logits": [round(float(value), 6) for value in logits],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
