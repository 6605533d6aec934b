"""Files for the report: the teacher's predictions, and the texts on which student and root teacher differ most."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import EXAMPLE_CHARS, EXAMPLES_FILE, TEACHER_PREDICTIONS_FILE, Example
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV
from distillchain_report.sections.text_classification.predictions import most_different, read_root_logits, softmax
from distillchain_store.store import Store
from distillchain_trainer.data.split import Split
from distillchain_trainer.tasks.interface import Measurement

log = logging.getLogger(__name__)


def write_comparison(
    folder: Path, store: Store, validation: Split, *, student: Measurement, teacher: Measurement, root: str | None
) -> None:
    """Writes both files into `folder`; both models were measured on `validation`. See TaskAdapter.write_comparison."""
    teacher.write_predictions(folder / TEACHER_PREDICTIONS_FILE)
    # Predictions hold no texts, so they are written all the same.
    if os.environ.get(KEEP_TEXTS_ENV) == "0":
        return
    logits = _root_logits(store, validation, teacher, root)
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as file:
        # In the order of the split, as the predictions are.
        for row in sorted(most_different(softmax(logits), softmax(student.outputs))):
            texts = [_printable(text[:EXAMPLE_CHARS]) for text in validation.texts[row]]
            file.write(Example(row=row, text=texts).to_json() + "\n")


def _root_logits(store: Store, validation: Split, teacher: Measurement, root: str | None) -> NDArray[np.float32]:
    """The root teacher's logits on the same rows; the stage's own teacher's where the store does not have them."""
    if root is None:
        return teacher.outputs
    found = read_root_logits(store, root, validation_sha256=validation.facts.sha256)
    # Stages of older releases have no predictions, and the root may have been measured on other rows.
    if found is None or found.shape != teacher.outputs.shape:
        log.info("the root teacher's predictions are not in the store; rows are chosen by the stage's own teacher")
        return teacher.outputs
    return found


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate cannot be written as UTF-8
