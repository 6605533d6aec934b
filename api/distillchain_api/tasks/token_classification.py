"""TokenClassification: a tag for each word of a sentence, such as the names of people and places in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected
from distillchain_api.metrics import Metric
from distillchain_api.task import CONFIG_RULE, Dataset, Task
from distillchain_api.tasks.text_classification import MAX_LABELS
from distillchain_api.values import ClassName, Text

ENTITY_F1 = Metric("entityF1", "entity F1")
TOKEN_ACCURACY = Metric("tokenAccuracy", "token accuracy")

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""
TAG = re.compile(r"(?P<prefix>[BI])-(?P<type>.+)")
OTHER_PREFIXES = re.compile(r"[ESLUM]-.+")  # of BIOES, BILOU and BMES


class WordsDataset(Dataset):
    """Rows with a list of words and a list of tags: jsonl, parquet or hub. Any other file is read as CoNLL."""

    words: Text = "words"
    """Column of the words, a list in each row. In a CoNLL file: the number of its column, counted from 1; otherwise the
    first column is read."""
    tags: Text = "tags"
    """Column of the tags, one for each word: names or numbers of the labels. In a CoNLL file: the number of its column,
    counted from 1; otherwise the last column is read."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.words == self.tags:
            raise fault("tags", expected(self.tags, "another column than words"))
        return self

    model_config = {
        "json_schema_extra": rules(
            CONFIG_RULE,
            cel(
                # The API server does not know the defaults, because other task types do not have these fields.
                "!has(self.words) || !has(self.tags) || self.words != self.tags",
                "tags: expected another column than words",
                fieldPath=".tags",
            ),
        )
    }


class TokenClassification(Task):
    """A tag for each word, in the scheme IOB2: B- for the first word of an entity, I- for its others, O elsewhere."""

    metrics: ClassVar[tuple[Metric, ...]] = (ENTITY_F1, TOKEN_ACCURACY)

    type: Literal["TokenClassification"]
    """TokenClassification: a tag for each word."""
    dataset: WordsDataset
    labels: Annotated[
        list[ClassName],
        Field(min_length=2, max_length=MAX_LABELS, json_schema_extra={"x-kubernetes-list-type": "set"}),
        Expect("the tags O and B-X, I-X for each kind X of entity", "for example [O, B-person, I-person]"),
    ]
    """Tags in the order of the model's outputs: O, and B-X and I-X for each kind X of entity. Every checkpoint's
    id2label is matched to them by name."""
    metric: Literal["entityF1", "tokenAccuracy"] = "entityF1"
    """The metric of gates and results, a share from 0 to 1. entityF1: an entity counts if all its words and its kind
    are right, over all kinds together, as seqeval computes it by default. tokenAccuracy: the share of words with the
    right tag, words outside of entities included."""

    @property
    def class_names(self) -> list[str]:
        """See Task."""
        return list(self.labels)

    @model_validator(mode="after")
    def _labels_are_iob2(self) -> Self:
        for problem in _faults_of_labels(self.labels):
            raise fault("labels", problem)
        return self

    model_config = {
        "json_schema_extra": rules(
            cel("self.labels.exists(name, name == 'O')", "labels: expected the tag O", fieldPath=".labels"),
            cel(
                "self.labels.all(name, name == 'O' || name.startsWith('B-') || name.startsWith('I-'))",
                "labels: expected O, and B-X or I-X for each kind X of entity (IOB2)",
                fieldPath=".labels",
            ),
        )
    }


def _faults_of_labels(labels: list[str]) -> Iterator[str]:
    """Why labels are not a set of IOB2 tags."""
    if len(set(labels)) != len(labels):
        yield expected(labels, "every tag once")
    if OUTSIDE not in labels:
        yield expected(labels, "the tag O among them", "it is the tag of words outside of entities")
    for name in labels:
        if OTHER_PREFIXES.fullmatch(name):
            yield expected(
                name,
                "a tag of IOB2",
                "BIOES and BILOU mark ends and single words too: write E- and L- as I-, and S- and U- as B-, in labels "
                "and data",
            )
        elif name != OUTSIDE and not TAG.fullmatch(name):
            yield expected(name, "O, B-X or I-X for a kind X of entity", "for example B-person")
        elif name.startswith("I-") and f"B-{name[2:]}" not in labels:
            yield expected(
                name,
                f"B-{name[2:]} beside it",
                "in IOB2 every entity begins with B-; data in IOB1, where B- is rare, must be converted",
            )


TASK = TokenClassification
