"""What a report compares student and teachers by, written beside the checkpoint: the teacher's predictions, and the
texts of the few validation rows on which the student and the root teacher differ most."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import EXAMPLE_CHARS, EXAMPLES_FILE, TEACHER_PREDICTIONS_FILE, Example
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV, WorkOrder
from distillchain_report.load import read_root_logits
from distillchain_report.statistics import most_different, softmax
from distillchain_store.store import Store
from distillchain_trainer.errors import WorkOrderInvalid
from distillchain_trainer.tasks.text_classification.evaluate import Measurement, write_predictions
from distillchain_trainer.tasks.text_classification.rows import Split

log = logging.getLogger(__name__)


def write_comparison(
    folder: Path, order: WorkOrder, store: Store, validation: Split, student: Measurement, teacher: Measurement
) -> None:
    """Puts both files into `folder`; both models were measured on `validation`, classes in the order of the task."""
    write_predictions(folder / TEACHER_PREDICTIONS_FILE, teacher, order.task.labels)
    if not keeps_texts():
        return
    root = _root_logits(order, store, validation, teacher)
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as file:
        for row in sorted(most_different(softmax(root), softmax(student.logits))):
            texts = [_printable(text[:EXAMPLE_CHARS]) for text in validation.texts[row]]
            file.write(Example(row=row, text=texts).to_json() + "\n")


def keeps_texts() -> bool:
    """Whether texts may be copied. Raises: WorkOrderInvalid."""
    wish = os.environ.get(KEEP_TEXTS_ENV, "")
    if wish not in ("", "0", "1"):
        raise WorkOrderInvalid(
            f"{KEEP_TEXTS_ENV}: got {wish!r}, expected 0 or 1; with 0 no validation text is copied into the store"
        )
    return wish != "0"


def _root_logits(order: WorkOrder, store: Store, validation: Split, teacher: Measurement) -> NDArray[np.float32]:
    """The root teacher's on the same rows; those of the stage's own teacher where the store does not have them."""
    if order.teacher is None or order.teacher.digest is None:
        return teacher.logits
    found = read_root_logits(store, order.teacher.digest, validation_sha256=validation.facts.sha256)
    if found is None or found.shape != teacher.logits.shape:
        log.info("the root teacher's predictions are not in the store; rows are chosen by the stage's own teacher")
        return teacher.logits
    return found


def _printable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate cannot be written as UTF-8
