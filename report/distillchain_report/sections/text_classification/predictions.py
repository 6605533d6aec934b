"""Classifiers' predictions on one split, as the trainer commits them, and how far two models' answers are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import EXAMPLES, Prediction
from distillchain_report.commits import CommittedFiles, root_predictions
from distillchain_store.store import ReadableStore


@dataclass(frozen=True)
class Predictions:
    """A classifier on one split.

    Attributes:
        truth, predicted: class indices [rows].
        logits: [rows, classes], in the order of the task.
    """

    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    logits: NDArray[np.float32]


def read_predictions(files: CommittedFiles, name: str, labels: Sequence[str], *, lost: str) -> Predictions | None:
    """The predictions in one committed file; None if it cannot be used. For `lost`, see `CommittedFiles.lines`."""
    lines = files.lines(name, Prediction, lost=lost)
    if not lines:
        return None
    index = {label: place for place, label in enumerate(labels)}
    # A report with shifted classes would look plausible, so one odd line makes the whole file useless.
    if any(len(line.logits) != len(labels) or {line.label, line.predicted} - index.keys() for line in lines):
        files.give_up(f"{files.uri}/{files.manifest.result_path(name)} has other labels than the task", lost)
        return None
    return Predictions(
        truth=np.array([index[line.label] for line in lines], dtype=np.int64),
        predicted=np.array([index[line.predicted] for line in lines], dtype=np.int64),
        logits=np.array([line.logits for line in lines], dtype=np.float32),
    )


def read_root_logits(store: ReadableStore, digest: str, *, validation_sha256: str) -> NDArray[np.float32] | None:
    """Validation logits of the root teacher of a committed stage; None if the store lacks them.

    Args:
        validation_sha256: of the rows to compare on; logits of other rows are of no use.
    """
    root = root_predictions(store, digest, validation_sha256=validation_sha256)
    if root is None:
        return None
    files, name = root
    labels = files.manifest.recipe.get("task", {}).get("labels", [])
    found = read_predictions(files, name, labels, lost="")
    return found.logits if found else None


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities [rows, classes]."""
    # float64, so that rounding does not decide which of two rows differs more.
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def distances(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> NDArray[np.float64]:
    """Total variation, from 0 to 1, between two models' probabilities [rows, classes], row by row."""
    found: NDArray[np.float64] = np.abs(teacher - student).sum(axis=1) / 2
    return found


def most_different(teacher: NDArray[np.float64], student: NDArray[np.float64], *, count: int = EXAMPLES) -> list[int]:
    """The rows with the largest distance, the largest first; of equal ones the earlier row first."""
    return [int(row) for row in np.argsort(-distances(teacher, student), kind="stable")[:count]]
