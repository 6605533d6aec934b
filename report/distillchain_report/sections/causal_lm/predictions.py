"""Language models' answers on one split, as the trainer commits them: sums over the tokens of each row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillchain_api.wire.records import TokenPrediction
from distillchain_report.commits import CommittedFiles, root_predictions
from distillchain_store.store import ReadableStore

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TokenPredictions:
    """A language model on one split.

    Attributes:
        tokens: how many tokens each row asks to predict [rows].
        log_probabilities: of these tokens, summed, in nats [rows].
        unigrams: the same by the frequencies of the tokens [rows].
        agreed: tokens on which model and teacher agree [rows]; None: the file is a teacher's.
    """

    tokens: NDArray[np.int64]
    log_probabilities: Floats
    unigrams: Floats
    agreed: NDArray[np.int64] | None

    def is_of_same_rows(self, other: TokenPredictions) -> bool:
        """Whether both have predicted the same tokens, as far as the files show."""
        return np.array_equal(self.tokens, other.tokens) and np.allclose(self.unigrams, other.unigrams, atol=1e-4)


def read_predictions(files: CommittedFiles, name: str, *, lost: str) -> TokenPredictions | None:
    """The answers in one committed file; None if it cannot be used. For `lost`, see `CommittedFiles.lines`."""
    lines = files.lines(name, TokenPrediction, lost=lost)
    if not lines or not any(line.tokens for line in lines):
        return None
    agreed = [line.agreed for line in lines if line.agreed is not None]
    return TokenPredictions(
        tokens=np.array([line.tokens for line in lines], dtype=np.int64),
        log_probabilities=np.array([line.log_probability for line in lines]),
        unigrams=np.array([line.unigram_log_probability for line in lines]),
        agreed=np.array(agreed, dtype=np.int64) if len(agreed) == len(lines) else None,
    )


def read_root_log_probabilities(store: ReadableStore, digest: str, *, validation_sha256: str) -> Floats | None:
    """What the root teacher of a committed stage says of each validation row [rows]; None if the store lacks it.

    Args:
        validation_sha256: of the rows to compare on; numbers for other rows are of no use.
    """
    root = root_predictions(store, digest, validation_sha256=validation_sha256)
    if root is None:
        return None
    files, name = root
    found = read_predictions(files, name, lost="")
    return found.log_probabilities if found else None
