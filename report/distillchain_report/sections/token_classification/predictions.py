"""Taggers' predictions on one split, as the trainer commits them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distillchain_api.wire.records import TaggedSentence
from distillchain_report.commits import CommittedFiles
from distillchain_report.sections.token_classification.entities import EntityCounts, Ints, Scheme, count_entities


@dataclass(frozen=True)
class Predictions:
    """A tagger on one split.

    Attributes:
        truth, predicted: indices of tags [words], one sentence after the other.
        starts: where each sentence begins in them [sentences + 1].
    """

    truth: Ints
    predicted: Ints
    starts: Ints
    scheme: Scheme

    @property
    def sentences(self) -> int:
        """Number of sentences."""
        return len(self.starts) - 1

    @functools.cached_property
    def counts(self) -> EntityCounts:
        """The entities of each sentence."""
        return count_entities(self.truth, self.predicted, self.starts, self.scheme)

    def has_same_rows(self, other: Predictions) -> bool:
        """Whether both are about the same sentences in the same order."""
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.truth, other.truth)


def read_predictions(files: CommittedFiles, name: str, labels: Sequence[str], *, lost: str) -> Predictions | None:
    """The predictions in one committed file; None if it cannot be used. For `lost`, see `CommittedFiles.lines`."""
    lines = files.lines(name, TaggedSentence, lost=lost)
    if not lines:
        return None
    index = {label: place for place, label in enumerate(labels)}
    # A report with shifted tags would look plausible, so one odd line makes the whole file useless.
    if any(len(line.labels) != len(line.predicted) or {*line.labels, *line.predicted} - index.keys() for line in lines):
        files.give_up(f"{files.uri}/{files.manifest.result_path(name)} has other labels than the task", lost)
        return None
    return Predictions(
        truth=np.array([index[tag] for line in lines for tag in line.labels], dtype=np.int64),
        predicted=np.array([index[tag] for line in lines for tag in line.predicted], dtype=np.int64),
        starts=np.cumsum([0, *(len(line.labels) for line in lines)], dtype=np.int64),
        scheme=Scheme.of(labels),
    )
