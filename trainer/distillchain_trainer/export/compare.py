"""A model in several formats on the same rows: metrics, speed, and what differs from PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillchain_api.metrics import Metric
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_trainer.data.split import Split
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes.shared_forward import all_outputs
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.tasks.interface import TaskAdapter

TOLERANCE = 1e-4
"""Largest difference of an output between float32 runtimes, as a share of the largest output, at least of 1.

Measured: below 1e-6 for BERT and bert-hash; a wrong graph was 0.3 to 0.5 off. Of numbers it is a share
of their spread.
"""
NOTABLE = 0.01  # of a metric that is no share
ROUNDING = 1e-6  # of a number itself: about ten units in the last place of float32


@dataclass(frozen=True)
class Measured:
    """A model in one format on validation."""

    outputs: NDArray[np.float32]
    metrics: SplitMetrics
    examples_per_second: float


@dataclass(frozen=True)
class Difference:
    """Outputs of two formats on the same rows.

    Attributes:
        predictions: number of rows or items with another prediction.
        largest: of an output.
        is_within_tolerance: whether float32 arithmetic explains it.
    """

    predictions: int
    largest: float
    is_within_tolerance: bool


def measure_format(
    model: Any,
    loaded: Loaded,
    task: TaskAdapter,
    split: Split,
    encoded: Encoded,
    *,
    on_batch: Callable[[int, int], None],
) -> Measured:
    """A model on all rows, in float32 on the CPU.

    Args:
        loaded: the model that `model` is an export of, or is.
        on_batch: gets the number of rows that are done, and of all.
    """
    # The first pass allocates memory, which is no part of the speed. Logits of several rows may not fit.
    with torch.inference_mode():
        model(**encoded.batch([0]))
    outputs, elapsed_s = all_outputs(model, encoded, task.measured_of, precision="float32", on_batch=on_batch)
    outputs = loaded.in_task_order(outputs)
    return Measured(outputs, task.measure(split, outputs).metrics, round(len(split) / max(elapsed_s, 1e-9), 2))


def difference(task_type: str, reference: NDArray[np.float32], other: NDArray[np.float32]) -> Difference:
    """What an export changes."""
    ours, theirs = (_numbers(task_type, outputs) for outputs in (reference, other))
    largest = float(np.abs(ours - theirs).max(initial=0.0))
    # A NaN compares as False with everything, so it is not within the tolerance.
    within = largest <= _allowed(task_type, ours)
    changed = predictions_of(task_type, reference) != predictions_of(task_type, other)
    per_output = changed.reshape(len(changed), -1).any(axis=1) if len(changed) else changed
    return Difference(int(per_output.sum()), largest, within)


def is_worse(metric: Metric, value: float, than: float) -> bool:
    """Whether a metric is worse, so that a user should know it."""
    loss = metric.worse_by(value, than)
    # A mean of logarithms or squares is never quite the same.
    # `not` and `<=`, because a NaN compares as False with everything.
    return not loss <= (0 if metric.is_share else NOTABLE * abs(than))


def _numbers(task_type: str, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The outputs without ids of tokens, which differ by nothing or by a prediction."""
    return outputs[:, 0] if task_type == "CausalLM" else outputs


def _allowed(task_type: str, reference: NDArray[np.float32]) -> float:
    """The largest difference that float32 arithmetic explains."""
    size = float(np.abs(reference).max(initial=0.0))
    if task_type != "Regression":
        return TOLERANCE * max(1.0, size)
    # Numbers have the unit of the data: 0.1 is nothing for a price and everything for a share. Their mean may be much
    # larger than their spread, and it says nothing about how well the graph tells texts apart.
    spread = float(np.ptp(reference)) if reference.size else 0.0
    return TOLERANCE * spread + ROUNDING * size


def predictions_of(task_type: str, outputs: NDArray[np.float32]) -> NDArray[Any]:
    """What a model answers, [rows] or [rows, labels]."""
    if task_type == "Regression":  # every difference is another number; the tolerance decides
        return np.zeros(len(outputs), dtype=bool)
    if task_type == "CausalLM":  # the id of the most probable token
        return outputs[:, 1]
    if task_type == "MultiLabelClassification":  # probability 0.5
        above: NDArray[Any] = outputs > 0
        return above
    best: NDArray[Any] = outputs.argmax(axis=-1)
    return best
