"""Predicted numbers on one split, as the trainer commits them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import NumberPrediction
from distillchain_report.commits import CommittedFiles, root_predictions
from distillchain_store.store import ReadableStore


@dataclass(frozen=True)
class Numbers:
    """A model on one split: what is true and what it predicts, float64 [rows]."""

    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]


def read_predictions(files: CommittedFiles, name: str, *, lost: str) -> Numbers | None:
    """The predictions in one committed file; None if it cannot be used. For `lost`, see `CommittedFiles.lines`."""
    lines = files.lines(name, NumberPrediction, lost=lost)
    if not lines:
        return None
    return Numbers(np.array([line.target for line in lines]), np.array([line.predicted for line in lines]))


def read_root_outputs(store: ReadableStore, digest: str, *, validation_sha256: str) -> NDArray[np.float32] | None:
    """Predictions [rows, 1] of the root teacher of a committed stage on validation; None if the store lacks them.

    Args:
        validation_sha256: of the rows to compare on; numbers for other rows are of no use.
    """
    root = root_predictions(store, digest, validation_sha256=validation_sha256)
    if root is None:
        return None
    files, name = root
    found = read_predictions(files, name, lost="")
    return found.predicted.astype(np.float32)[:, None] if found else None
