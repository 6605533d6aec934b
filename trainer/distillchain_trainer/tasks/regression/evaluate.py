"""How good a regression is on a split: correlations, errors, predictions."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.metrics import format_value
from distillchain_api.tasks.regression import Regression
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_report.sections.regression.scores import constant_answer, metric_value
from distillchain_trainer.tasks.regression import chance


@dataclass(frozen=True)
class Predicted:
    """A regression on one split.

    Attributes:
        outputs: numbers [rows, 1].
        truth: [rows].
    """

    task: Regression
    split: str
    outputs: NDArray[np.float32]
    truth: NDArray[np.float64]

    @functools.cached_property
    def numbers(self) -> NDArray[np.float64]:
        """The predicted number of each row [rows]."""
        return self.outputs[:, 0].astype(np.float64)

    @functools.cached_property
    def metrics(self) -> SplitMetrics:
        """Every metric of the task type."""
        return {metric.name: metric_value(metric.name, self.truth, self.numbers) for metric in self.task.metrics}

    @functools.cached_property
    def doubt(self) -> str | None:
        """See Measurement."""
        return chance.doubt_of(self.task, self.truth, self.numbers)

    @property
    def warnings(self) -> list[str]:
        """Predictions in another unit than the data: they order the rows well and miss them all the same."""
        mse = next(metric for metric in self.task.metrics if metric.name == "mse")
        error, constant = self.metrics["mse"], constant_answer("mse", self.truth)
        if self.metrics["pearson"] <= 0 or error <= constant or self.doubt is not None:
            return []
        shown = format_value(constant, mse)
        return [
            f"its numbers on {self.split} are probably in another unit than the data: mse {format_value(error, mse)}, "
            f"while always answering the mean reaches {shown}"
        ]

    def write_predictions(self, path: Path) -> None:
        """Lines of distillchain_api.wire.records.NumberPrediction."""
        with path.open("w", encoding="utf-8") as file:
            for row, (truth, number) in enumerate(zip(self.truth, self.numbers, strict=True)):
                # Not rounded: numbers may be much larger than their differences, and intervals are computed from these.
                line = {"row": row, "target": float(truth), "predicted": float(number)}
                file.write(json.dumps(line) + "\n")
