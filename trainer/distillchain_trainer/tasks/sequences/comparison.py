"""Files for the report: the teacher's predictions, and the texts on which student and root teacher differ most."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import EXAMPLE_CHARS, EXAMPLES, EXAMPLES_FILE, TEACHER_PREDICTIONS_FILE, Example
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV
from distillchain_trainer.data.split import Split
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
    if os.environ.get(KEEP_TEXTS_ENV) == "0":
        return
    outputs = _root_outputs(teacher, read_root)
    # Of equal distances the earlier row first: the report chooses its rows in the same way.
    chosen = np.argsort(-distances(outputs, student.outputs), kind="stable")[:EXAMPLES]
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as file:
        # In the order of the split, as the predictions are.
        for row in sorted(int(row) for row in chosen):
            texts = [_printable(text[:EXAMPLE_CHARS]) for text in validation.texts[row]]
            file.write(Example(row=row, text=texts).to_json() + "\n")


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


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate cannot be written as UTF-8
