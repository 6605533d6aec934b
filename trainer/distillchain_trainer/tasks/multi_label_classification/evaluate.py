"""How good a multi-label model is on a split: F1, subset accuracy, Hamming loss, predictions."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.faults import listed
from distillchain_api.tasks.multi_label_classification import MultiLabelClassification
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_report.sections.multi_label_classification.scores import metric_value
from distillchain_trainer.tasks.multi_label_classification import chance


def table_of(targets: Sequence[Sequence[int]], labels: int) -> NDArray[np.bool_]:
    """Which row has which label, [rows, labels]."""
    table = np.zeros((len(targets), labels), dtype=bool)
    for row, target in enumerate(targets):
        table[row, target] = True
    return table


@dataclass(frozen=True)
class MultiLabelled:
    """A model on one split.

    Attributes:
        outputs: logits [rows, labels] in the order of the task.
        truth: which row has which label [rows, labels].
    """

    task: MultiLabelClassification
    split: str
    outputs: NDArray[np.float32]
    truth: NDArray[np.bool_]

    @functools.cached_property
    def predicted(self) -> NDArray[np.bool_]:
        """Which row gets which label [rows, labels]: a logit above 0 is a probability above 0.5."""
        above: NDArray[np.bool_] = self.outputs > 0
        return above

    @functools.cached_property
    def metrics(self) -> SplitMetrics:
        """Every metric of the task type."""
        return {metric.name: metric_value(metric.name, self.truth, self.predicted) for metric in self.task.metrics}

    @functools.cached_property
    def doubt(self) -> str | None:
        """See Measurement."""
        return chance.doubt_of(self.truth, self.predicted, metric=self.task.metric)

    @property
    def warnings(self) -> list[str]:
        """The labels that occur and are never predicted."""
        occurs = self.truth.any(axis=0)
        never = np.flatnonzero(occurs & ~self.predicted.any(axis=0)).tolist()
        if not never:
            return []
        names = listed([self.task.labels[index] for index in never], most=5)
        return [f"it never predicts {len(never)} of {int(occurs.sum())} labels of {self.split}: {names}"]

    def write_predictions(self, path: Path) -> None:
        """Lines of distillchain_api.wire.records.LabelsPrediction."""
        labels = self.task.labels
        with path.open("w", encoding="utf-8") as file:
            rows = zip(self.truth, self.predicted, self.outputs, strict=True)
            for row, (truth, guess, logits) in enumerate(rows):
                line = {
                    "row": row,
                    "labels": [labels[index] for index in np.flatnonzero(truth)],
                    "predicted": [labels[index] for index in np.flatnonzero(guess)],
                    # Six decimals keep the file small; float32 has about seven significant digits.
                    "logits": [round(float(value), 6) for value in logits],
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
