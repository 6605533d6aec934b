"""Files for the report: the teacher's predictions, and the texts on which student and root teacher differ most."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import EXAMPLE_CHARS, EXAMPLES, TEACHER_PREDICTIONS_FILE
from distillchain_trainer.data.split import Split
from distillchain_trainer.tasks.example_texts import may_keep_texts, write_examples
from distillchain_trainer.tasks.interface import Measurement

log = logging.getLogger(__name__)

Outputs = NDArray[np.float32]
ReadRoot = Callable[[], Outputs | None]
"""Reads the root teacher's outputs on the same rows from the store; None if the store lacks them."""
Distances = Callable[[Outputs, Outputs], NDArray[np.float64]]
"""How far the answers of two models are apart, row by row, from their outputs."""


def write_comparison(
    folder: Path,
    validation: Split,
    *,
    student: Measurement,
    teacher: Measurement,
    read_root: ReadRoot | None,
    distances: Distances,
) -> None:
    """Writes both files into `folder`; both models were measured on `validation`. See TaskAdapter.write_comparison.

    Args:
        read_root: None: the teacher is the root itself.
    """
    teacher.write_predictions(folder / TEACHER_PREDICTIONS_FILE)
    # Predictions hold no texts, so they are written all the same.
    if not may_keep_texts():
        return
    outputs = _root_outputs(teacher, read_root)
    # Of equal distances the earlier row first: the report chooses its rows in the same way.
    chosen = np.argsort(-distances(outputs, student.outputs), kind="stable")[:EXAMPLES].tolist()
    write_examples(folder, chosen, lambda row: [text[:EXAMPLE_CHARS] for text in validation.texts[row]])


def _root_outputs(teacher: Measurement, read_root: ReadRoot | None) -> Outputs:
    """The root teacher's outputs on the same rows; the stage's own teacher's where the store does not have them."""
    if read_root is None:
        return teacher.outputs
    found = read_root()
    # Stages of older releases have no predictions, and the root may have been measured on other rows.
    if found is None or found.shape != teacher.outputs.shape:
        log.info("the root teacher's predictions are not in the store; rows are chosen by the stage's own teacher")
        return teacher.outputs
    return found
