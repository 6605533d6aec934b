"""Multi-label predictions on one split, as the trainer commits them, and how far two models' answers are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from distillchain_api.wire.records import LabelsPrediction
from distillchain_report.commits import CommittedFiles, root_predictions
from distillchain_store.store import ReadableStore


@dataclass(frozen=True)
class LabelPredictions:
    """A model on one split.

    Attributes:
        truth, predicted: bool [rows, labels].
        logits: [rows, labels], in the order of the task.
    """

    truth: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    logits: NDArray[np.float32]


def read_predictions(files: CommittedFiles, name: str, labels: Sequence[str], *, lost: str) -> LabelPredictions | None:
    """The predictions in one committed file; None if it cannot be used. For `lost`, see `CommittedFiles.lines`."""
    lines = files.lines(name, LabelsPrediction, lost=lost)
    if not lines:
        return None
    index = {label: place for place, label in enumerate(labels)}
    # A report with shifted labels would look plausible, so one odd line makes the whole file useless.
    if any(len(it.logits) != len(labels) or {*it.labels, *it.predicted} - index.keys() for it in lines):
        files.give_up(f"{files.uri}/{files.manifest.result_path(name)} has other labels than the task", lost)
        return None
    truth, predicted = np.zeros((2, len(lines), len(labels)), dtype=bool)
    for row, line in enumerate(lines):
        truth[row, [index[label] for label in line.labels]] = True
        predicted[row, [index[label] for label in line.predicted]] = True
    return LabelPredictions(truth, predicted, np.array([line.logits for line in lines], dtype=np.float32))


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


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probability of each label, [rows, labels]."""
    found: NDArray[np.float64] = expit(logits.astype(np.float64))
    return found


def distances(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest difference of a label's probability between two models, row by row, from 0 to 1."""
    found: NDArray[np.float64] = np.abs(teacher - student).max(axis=1)
    return found
