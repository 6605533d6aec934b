"""Files of a committed stage for reports and users: one JSON object per line, listed in its manifest.

They are next to the checkpoint, in the folder RESULTS_FOLDER of the attempt (distillchain_api.layout).

Manifests of older releases do not list newer files: a reader reports them as missing and continues.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillchain_api.base import Record
from distillchain_api.wire.manifest import SplitMetrics

HISTORY_FILE = "history.jsonl"
"""Lines of HistoryPoint: the training in at most HISTORY_POINTS points, and validation at the end of each epoch."""
PREDICTIONS_FILE = "predictions-validation.jsonl"
"""Lines of Prediction: the student on validation, in the order of the split."""
TEST_PREDICTIONS_FILE = "predictions-test.jsonl"
"""Lines of Prediction: the student on test, where the task has one."""
TEACHER_PREDICTIONS_FILE = "teacher-predictions-validation.jsonl"
"""Lines of Prediction: the stage's own teacher on the same rows."""
EXAMPLES_FILE = "examples-validation.jsonl"
"""Lines of Example: the texts of the few validation rows on which root teacher and student differ most."""

HISTORY_POINTS = 500  # a printed curve is about 500 pixels wide; the file has about 45 KB
EXAMPLES = 20
EXAMPLE_CHARS = 500  # of each text; the rest is cut


def lines_of(text: str) -> list[str]:
    """The lines of such a file. Not splitlines(), which also breaks at U+2028, U+2029 and U+0085 within texts."""
    return [line for line in text.split("\n") if line]


class HistoryPoint(Record):
    """A point of the training: a mean loss, or the metrics at the end of an epoch."""

    step: Annotated[int, Field(ge=0)]
    epoch: Annotated[float, Field(ge=0)]
    loss: float | None = None
    """Mean over the steps since the previous point."""
    learning_rate: float | None = None
    """Of the next step, after this point: 0 at the end of a schedule that decays to 0."""
    validation: SplitMetrics | None = None


class Prediction(Record):
    """A model's answer for one row."""

    row: Annotated[int, Field(ge=0)]
    """Counted from 0 in the split."""
    label: str
    predicted: str
    logits: list[float]
    """In the order of the task's labels."""


class TokenPrediction(Record):
    """A language model's answer for one row: how probable it finds the tokens that the data asks to predict."""

    row: Annotated[int, Field(ge=0)]
    """Counted from 0 in the split."""
    tokens: Annotated[int, Field(ge=0)]
    """Tokens to predict. A row whose completion is cut off has none."""
    log_probability: float
    """Sum over the tokens, in nats: tokenCrossEntropy is minus the sum of all rows, divided by the tokens of all."""
    unigram_log_probability: float
    """The same by the frequencies of the tokens of the split, which is the chance level."""
    agreed: Annotated[int, Field(ge=0)] | None = None
    """Tokens for which model and teacher find the same token most probable; empty for a teacher."""


class LabelsPrediction(Record):
    """A model's answer for one row of MultiLabelClassification."""

    row: Annotated[int, Field(ge=0)]
    """Counted from 0 in the split."""
    labels: list[str]
    """Empty: the row has no label."""
    predicted: list[str]
    logits: list[float]
    """In the order of the task's labels."""


class NumberPrediction(Record):
    """A model's answer for one row of Regression."""

    row: Annotated[int, Field(ge=0)]
    """Counted from 0 in the split."""
    target: float
    predicted: float


class TaggedSentence(Record):
    """A model's tags for the words of one sentence; in TokenClassification the line of a predictions file."""

    row: Annotated[int, Field(ge=0)]
    """Counted from 0 in the split."""
    labels: list[str]
    """One tag for each word."""
    predicted: list[str]
    """The same number of tags. O for a word that the model did not read."""


class Example(Record):
    """The text of one validation row."""

    row: Annotated[int, Field(ge=0)]
    text: list[str]
    """One or two texts, each cut to EXAMPLE_CHARS; or the first words of a sentence, EXAMPLE_CHARS in all."""
