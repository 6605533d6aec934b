"""How good a classifier is on a split: accuracy, macro F1, predictions."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.faults import listed
from distillchain_api.tasks.text_classification import TextClassification
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_trainer.tasks.text_classification import chance


@dataclass(frozen=True)
class Classified:
    """A classifier on one split.

    Attributes:
        outputs: logits [rows, classes] in the order of the task.
        classes: the true class of each row [rows].
    """

    task: TextClassification
    split: str
    outputs: NDArray[np.float32]
    classes: NDArray[np.int64]

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The class of each row [rows]; of equal logits the first."""
        best: NDArray[np.int64] = self.outputs.argmax(-1)
        return best

    @functools.cached_property
    def metrics(self) -> SplitMetrics:
        """accuracy, and macro F1 over the classes that occur in the split.

        A class that is predicted but never occurs is left out of the average: one stray row of 1,000 must not turn a
        macro F1 of 1.0 into 0.67. The stray row still lowers the recall of its true class.
        """
        right = self.classes == self.predicted
        size = self.outputs.shape[1]
        rows, guesses = (np.bincount(classes, minlength=size) for classes in (self.classes, self.predicted))
        hits = np.bincount(self.classes[right], minlength=size)
        occurs = rows > 0
        f1 = 2 * hits[occurs] / (rows[occurs] + guesses[occurs])
        return {"accuracy": float(right.mean()), "macroF1": float(f1.mean())}

    @functools.cached_property
    def doubt(self) -> str | None:
        """See Measurement."""
        return chance.doubt_of(
            self.metrics["accuracy"],
            metric=self.task.metric,
            classes=self.classes.tolist(),
            predicted=self.predicted.tolist(),
        )

    @property
    def warnings(self) -> list[str]:
        """The classes that occur and are never predicted."""
        never = sorted(set(self.classes.tolist()) - set(self.predicted.tolist()))
        if not never:
            return []
        names = listed([self.task.labels[index] for index in never], most=5)
        share = f"{len(never)} of {len(set(self.classes.tolist()))} classes"
        return [f"it never predicts {share} of {self.split}: {names}"]

    def write_predictions(self, path: Path) -> None:
        """Lines of distillchain_api.wire.records.Prediction."""
        labels = self.task.labels
        with path.open("w", encoding="utf-8") as file:
            rows = zip(self.classes, self.predicted, self.outputs, strict=True)
            for row, (truth, guess, logits) in enumerate(rows):
                line = {
                    "row": row,
                    "label": labels[truth],
                    "predicted": labels[guess],
                    # Six decimals keep the file small; float32 has about seven significant digits.
                    "logits": [round(float(value), 6) for value in logits],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
