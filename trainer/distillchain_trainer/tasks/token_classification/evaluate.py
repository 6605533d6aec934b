"""How good a tagger is on a split: entity F1, token accuracy, predictions."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillchain_api.tasks.token_classification import OUTSIDE, TokenClassification
from distillchain_api.wire.manifest import SplitMetrics
from distillchain_api.wire.records import TaggedSentence
from distillchain_report.sections.token_classification.entities import Scheme
from distillchain_report.sections.token_classification.predictions import Predictions
from distillchain_report.sections.token_classification.scores import ratio_of
from distillchain_trainer.data.split import Split
from distillchain_trainer.tasks.token_classification import chance


@dataclass(frozen=True)
class Tagged:
    """A tagger on one split.

    Attributes:
        outputs: logits [words, labels] in the order of the task, row after row; zero for words without a token.
    """

    task: TokenClassification
    split: Split
    outputs: NDArray[np.float32]

    @functools.cached_property
    def answers(self) -> Predictions:
        """The true and the predicted tag of each word. A word that the model did not read gets O."""
        predicted = self.outputs.argmax(-1)
        predicted[~self.outputs.any(-1)] = self.task.labels.index(OUTSIDE)
        targets = self.split.targets
        return Predictions(
            truth=np.array([tag for tags in targets for tag in tags], dtype=np.int64),
            predicted=predicted.astype(np.int64),
            starts=np.cumsum([0, *(len(tags) for tags in targets)], dtype=np.int64),
            scheme=Scheme.of(self.task.labels),
        )

    @functools.cached_property
    def metrics(self) -> SplitMetrics:
        """entityF1 and tokenAccuracy."""
        return {metric.name: ratio_of(metric.name, self.answers).value for metric in self.task.metrics}

    @functools.cached_property
    def doubt(self) -> str | None:
        """See Measurement."""
        return chance.doubt_of(self.answers, split=self.split.name)

    @property
    def warnings(self) -> list[str]:
        """The kinds of entities that occur and are never predicted."""
        counts, kinds = self.answers.counts, self.answers.scheme.kinds
        occurring = [index for index in range(len(kinds)) if counts.true[:, index].any()]
        never = [kinds[index] for index in occurring if not counts.predicted[:, index].any()]
        if not never:
            return []
        names = ", ".join(never[:5]) + (", ..." if len(never) > 5 else "")
        share = f"{len(never)} of {len(occurring)} kinds"
        return [f"it never predicts {share} of entities of {self.split.name}: {names}"]

    def write_predictions(self, path: Path) -> None:
        """Lines of distillchain_api.wire.records.TaggedSentence. They hold no words."""
        labels, answers = self.task.labels, self.answers
        with path.open("w", encoding="utf-8") as file:
            for row, (start, end) in enumerate(zip(answers.starts[:-1], answers.starts[1:], strict=True)):
                line = TaggedSentence(
                    row=row,
                    labels=[labels[tag] for tag in answers.truth[start:end]],
                    predicted=[labels[tag] for tag in answers.predicted[start:end]],
                )
                file.write(json.dumps(line.to_document(), ensure_ascii=False) + "\n")
