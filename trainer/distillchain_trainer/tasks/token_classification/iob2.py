"""Checks that the tags of a split are IOB2, and that it has entities of every kind."""

from __future__ import annotations

from collections.abc import Sequence

from distillchain_api.tasks.token_classification import OUTSIDE
from distillchain_trainer.errors import DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.label_names import shorten

# In IOB1 nearly all entities begin with I-. Below this share it is rather a mistake here and there, which seqeval
# forgives: it lets an entity begin with I- too.
MOST_MISTAKES = 0.05


class Iob2Check:
    """Looks at the tags of all rows of a split."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._kinds = [None if label == OUTSIDE else label[2:] for label in labels]
        self._begins = [label.startswith("B-") for label in labels]
        self._seen = [0] * len(labels)
        self._entities = 0
        self._mistakes = 0
        self._first = ""

    def look_at(self, tags: Sequence[int], place: str) -> None:
        """Counts the entities of a row, and those that do not begin with B-."""
        before = None  # the kind of the word before
        for number, tag in enumerate(tags):
            kind = self._kinds[tag]
            self._seen[tag] += 1
            if self._begins[tag]:
                self._entities += 1
            elif kind is not None and kind != before:
                self._entities += 1
                self._mistakes += 1
                # Not the word itself: warnings go into the store, where texts may be unwanted.
                self._first = self._first or f"{place}, word {number + 1}"
            before = kind

    def finish(self, role: str, where: str, source: str, warnings: StageWarnings) -> None:
        """Judges the split. Raises: DataInvalid."""
        self._check_scheme(source, warnings)
        kinds = list(dict.fromkeys(kind for kind in self._kinds if kind is not None))
        occurring = {self._kinds[tag] for tag, count in enumerate(self._seen) if count}
        absent = [kind for kind in kinds if kind not in occurring]
        if not self._entities and role != "train":
            raise DataInvalid(
                f"{where}: no word of {source} is in an entity, so no model can be distinguished from one that tags "
                "every word O; add rows with entities"
            )
        # Refused only in train: the student could never learn the kind. Elsewhere it is a warning.
        if absent and role == "train":
            raise DataInvalid(
                f"{where}: {source} has no entity of the kind {absent[0]}; add such rows or remove B-{absent[0]} and "
                f"I-{absent[0]} from spec.task.labels"
            )
        if absent:
            warnings.add(f"{where}: {source} has no entity of the kind {shorten(absent)}, so no metric covers it")
        if role == "train":
            self._warn_of_tags(where, source, warnings)

    def _check_scheme(self, source: str, warnings: StageWarnings) -> None:
        if not self._mistakes:
            return
        found = (
            f"{source}: {self._mistakes} of {self._entities} entities begin with I- instead of B-, first at "
            f"{self._first}"
        )
        if self._mistakes > MOST_MISTAKES * self._entities:
            raise DataInvalid(
                f"{found}; the tags are not IOB2 (perhaps IOB1): let the first word of every entity have the tag B-"
            )
        warnings.add(f"{found}; they count as entities, as in seqeval")

    def _warn_of_tags(self, where: str, source: str, warnings: StageWarnings) -> None:
        never = [self._labels[tag] for tag, count in enumerate(self._seen) if not count]
        if never:
            warnings.add(f"{where}: {source} never has the tag {shorten(never)}, so no student learns it")
