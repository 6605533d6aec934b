"""How well a language model predicts the tokens of a split: cross-entropy, perplexity, agreement with the teacher."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.manifest import SplitMetrics
from distillchain_api.wire.records import TokenPrediction
from distillchain_trainer.tasks.causal_lm import chance

LOG_PROBABILITY_DIGITS = 6  # keep the file small; float32 has about seven significant digits
MOST_NATS = 700.0  # e to the power of 710 is no longer a number


@dataclass(frozen=True)
class Predicted:
    """A language model on one split. A token here is one that the data asks to predict.

    Attributes:
        outputs: [tokens, 2]: the log-probability of each token, and the id that the model finds most probable.
        starts: row i has the tokens `starts[i]` to `starts[i + 1]`; some rows may have none.
        targets: ids of the tokens [tokens].
        vocabulary: number of tokens that the tokenizer knows.
        teacher: the ids that the stage's teacher finds most probable [tokens]; None: it is the teacher, or has none.
    """

    outputs: NDArray[np.float32]
    starts: NDArray[np.int64]
    targets: NDArray[np.int64]
    vocabulary: int
    teacher: NDArray[np.int64] | None = None

    @functools.cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Of each token [tokens]."""
        return self.outputs[:, 0].astype(np.float64)

    @functools.cached_property
    def most_probable(self) -> NDArray[np.int64]:
        """The id that the model would choose in place of each token [tokens]."""
        return self.outputs[:, 1].astype(np.int64)

    @functools.cached_property
    def metrics(self) -> SplitMetrics:
        """tokenCrossEntropy, perplexity, and beside a teacher teacherAgreement."""
        nats = -float(self.log_probabilities.mean())
        found = {"tokenCrossEntropy": nats, "perplexity": math.exp(min(nats, MOST_NATS))}
        if self.teacher is not None:
            found["teacherAgreement"] = float((self.most_probable == self.teacher).mean())
        return found

    @functools.cached_property
    def doubt(self) -> str | None:
        """See Measurement."""
        return chance.doubt_of(self.log_probabilities, self.targets, self.vocabulary)

    @property
    def warnings(self) -> list[str]:
        """None so far."""
        return []

    @functools.cached_property
    def row_log_probabilities(self) -> NDArray[np.float64]:
        """The sum over the tokens of each row [rows]; 0 for a row without any."""
        return _sum_by_row(self.log_probabilities, self.starts)

    def write_predictions(self, path: Path) -> None:
        """Lines of distillchain_api.wire.records.TokenPrediction."""
        agreed = None
        if self.teacher is not None:
            agreed = _sum_by_row((self.most_probable == self.teacher).astype(np.float64), self.starts)
        # What the frequencies say, so that a reader of the file knows chance without the tokenizer.
        unigram = _sum_by_row(chance.unigram_log_probabilities(self.targets, self.vocabulary), self.starts)
        with path.open("w", encoding="utf-8") as file:
            for row, tokens in enumerate(np.diff(self.starts).tolist()):
                line = TokenPrediction(
                    row=row,
                    tokens=tokens,
                    log_probability=round(float(self.row_log_probabilities[row]), LOG_PROBABILITY_DIGITS),
                    unigram_log_probability=round(float(unigram[row]), LOG_PROBABILITY_DIGITS),
                    agreed=None if agreed is None else int(agreed[row]),
                )
                file.write(line.to_json() + "\n")


def _sum_by_row(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    # Differences of running sums: np.add.reduceat gives a row without tokens the value of the next one.
    found: NDArray[np.float64] = np.diff(np.concatenate([[0.0], np.cumsum(values)])[starts])
    return found
