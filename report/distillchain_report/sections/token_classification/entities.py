"""Entities in tagged sentences, and how many of them two taggings share, as seqeval 1.2.2 counts them by default.

An entity begins at B-X, and at I-X where the word before is outside of entities or in one of another kind. So an entity
that a model begins with I- counts. The default mode of seqeval equals conlleval, the script of the CoNLL-2003 task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTSIDE = "O"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scheme:
    """The tags of a task as numbers.

    Attributes:
        kinds: names of the kinds of entities, in alphabetical order, as seqeval lists them.
        kind: for each tag the index of its kind, -1 for O [tags].
        begins: whether a tag is a B- tag [tags].
    """

    kinds: tuple[str, ...]
    kind: Ints
    begins: NDArray[np.bool_]

    @classmethod
    def of(cls, labels: Sequence[str]) -> Scheme:
        """The scheme of the labels of a task, in their order."""
        kinds = tuple(sorted({label[2:] for label in labels if label != OUTSIDE}))
        return cls(
            kinds,
            np.array([-1 if label == OUTSIDE else kinds.index(label[2:]) for label in labels], dtype=np.int64),
            np.array([label.startswith("B-") for label in labels]),
        )


@dataclass(frozen=True)
class Entities:
    """Entities of many sentences: words `start` to `end` of all words [entities], each of one kind."""

    start: Ints
    end: Ints
    kind: Ints

    def __len__(self) -> int:
        return len(self.start)


def find_entities(tags: Ints, starts: Ints, scheme: Scheme) -> Entities:
    """The entities in tags [words] of sentences that begin at `starts` [sentences + 1]."""
    kind, begins = scheme.kind[tags], scheme.begins[tags]
    # No entity continues from one sentence to the next.
    is_first = np.zeros(len(tags) + 1, dtype=bool)
    is_first[starts] = True
    before = np.concatenate([[-1], kind[:-1]])
    before[is_first[:-1]] = -1
    start = np.flatnonzero((kind >= 0) & (begins | (kind != before)))
    # An entity ends before the next one, before O, and at the end of its sentence.
    is_stop = is_first[1:].copy()
    is_stop[:-1] |= (kind[1:] != kind[:-1]) | begins[1:]
    stop = np.flatnonzero(is_stop & (kind >= 0)) + 1
    return Entities(start, stop, kind[start])


@dataclass(frozen=True)
class EntityCounts:
    """How many entities of each kind each sentence has [sentences, kinds]: in the truth, predicted, and in both."""

    true: Ints
    predicted: Ints
    right: Ints

    @property
    def f1(self) -> float:
        """Over all sentences and kinds together (micro); 0 where there is no entity at all."""
        return f1_of(int(self.right.sum()), int(self.predicted.sum()), int(self.true.sum()))


def f1_of(right: int, predicted: int, true: int) -> float:
    """F1 of counts of entities."""
    return 2 * right / (predicted + true) if predicted + true else 0.0


def count_entities(truth: Ints, predicted: Ints, starts: Ints, scheme: Scheme) -> EntityCounts:
    """The entities of two taggings [words] of the same sentences."""
    theirs, ours = find_entities(truth, starts, scheme), find_entities(predicted, starts, scheme)
    return EntityCounts(
        true=_per_sentence(theirs, starts, scheme),
        predicted=_per_sentence(ours, starts, scheme),
        right=_per_sentence(shared_entities(theirs, ours), starts, scheme),
    )


def shared_entities(one: Entities, other: Entities) -> Entities:
    """The entities of `one` that `other` has too, with the same words and kind."""
    size = max(int(one.end.max(initial=0)), int(other.end.max(initial=0))) + 1
    kinds = max(int(one.kind.max(initial=0)), int(other.kind.max(initial=0))) + 1
    found = np.isin(_keys(one, size, kinds), _keys(other, size, kinds))
    return Entities(one.start[found], one.end[found], one.kind[found])


def _keys(entities: Entities, size: int, kinds: int) -> Ints:
    """A number for each entity that is equal for equal ones."""
    # Two entities of one tagging never begin at the same word, so (start, end, kind) fits into 64 bits by length.
    lengths = entities.end - entities.start
    keys: Ints = (entities.start * size + lengths) * kinds + entities.kind
    return keys


def _per_sentence(entities: Entities, starts: Ints, scheme: Scheme) -> Ints:
    """Number of entities [sentences, kinds]."""
    sentences = len(starts) - 1
    sentence = np.searchsorted(starts, entities.start, side="right") - 1
    flat = np.bincount(sentence * len(scheme.kinds) + entities.kind, minlength=sentences * len(scheme.kinds))
    return flat.reshape(sentences, len(scheme.kinds))
