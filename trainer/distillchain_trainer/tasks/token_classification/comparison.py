"""Files for the report: the teacher's predictions, and the words of the sentences on which the student errs most."""

from __future__ import annotations

import os
from pathlib import Path

from distillchain_api.wire.records import EXAMPLE_CHARS, EXAMPLES_FILE, TEACHER_PREDICTIONS_FILE, Example
from distillchain_api.wire.work_order import KEEP_TEXTS_ENV
from distillchain_report.sections.token_classification.details import worst_sentences
from distillchain_trainer.data.split import Split
from distillchain_trainer.tasks.token_classification.evaluate import Tagged


def write_comparison(folder: Path, validation: Split, *, student: Tagged, teacher: Tagged) -> None:
    """Writes both files into `folder`; both models were measured on `validation`."""
    teacher.write_predictions(folder / TEACHER_PREDICTIONS_FILE)
    # Predictions hold no words, so they are written all the same.
    if os.environ.get(KEEP_TEXTS_ENV) == "0":
        return
    with (folder / EXAMPLES_FILE).open("w", encoding="utf-8") as file:
        # In the order of the split, as the predictions are.
        for row in sorted(worst_sentences(student.answers.counts)):
            file.write(Example(row=row, text=_first_words(validation.texts[row])).to_json() + "\n")


def _first_words(words: tuple[str, ...]) -> list[str]:
    """As many words as EXAMPLE_CHARS allows."""
    kept: list[str] = []
    left = EXAMPLE_CHARS
    for word in words:
        left -= len(word) + 1
        if left < 0:
            break
        kept.append(word)
    return kept
