"""Files for the report: the teacher's predictions, and the words of the sentences on which the student errs most."""

from __future__ import annotations

from pathlib import Path

from distillchain_api.wire.records import EXAMPLE_CHARS, TEACHER_PREDICTIONS_FILE
from distillchain_report.sections.token_classification.details import worst_sentences
from distillchain_trainer.data.split import Split
from distillchain_trainer.tasks.example_texts import may_keep_texts, write_examples
from distillchain_trainer.tasks.token_classification.evaluate import Tagged


def write_comparison(folder: Path, validation: Split, *, student: Tagged, teacher: Tagged) -> None:
    """Writes both files into `folder`; both models were measured on `validation`."""
    teacher.write_predictions(folder / TEACHER_PREDICTIONS_FILE)
    # Predictions hold no words, so they are written all the same.
    if may_keep_texts():
        write_examples(folder, worst_sentences(student.answers.counts), lambda row: _first_words(validation.texts[row]))


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
