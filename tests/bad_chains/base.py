"""A good chain, and how a bad one differs from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GOOD: dict[str, Any] = {
    "apiVersion": "distillchain.io/v1alpha1",
    "kind": "DistillationChain",
    "metadata": {"name": "good"},
    "spec": {
        "task": {
            "type": "TextClassification",
            "dataset": {
                "uri": "s3://data/sst2",
                "splits": {"train": "train.tsv", "validation": "dev.tsv"},
                "text": ["sentence"],
                "label": "label",
            },
            "labels": ["negative", "positive"],
        },
        "storage": {"uri": "s3://models/distill", "secretRef": {"name": "s3-credentials"}},
        "teacher": {"model": "hf://org/teacher@main", "gate": {"minMetric": 0.9}},
        "stages": [
            {"name": "mini", "student": {"model": "hf://org/mini"}},
            {"name": "tiny", "student": {"model": "hf://org/tiny"}, "gate": {"maxDrop": 0.05}},
        ],
    },
}

Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class BadChain:
    id: str
    change: Change
    want: str
    server: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        document = copy.deepcopy(GOOD)
        self.change(document["spec"])
        document["metadata"] |= self.metadata
        return document


def language_chain(spec: dict[str, Any], form: dict[str, Any], *, train: str) -> None:
    """Makes it a chain of language models, without gates: their metrics are better when lower."""
    splits = {"train": train, "validation": "dev.jsonl"}
    spec["task"] = {"type": "CausalLM", "dataset": {"uri": "s3://data/texts", "splits": splits, **form}}
    spec["teacher"].pop("gate")
    spec["stages"][1].pop("gate")


def unchanged(_: dict[str, Any]) -> None:
    """The fault is in the metadata."""


def tagging(*labels: str, **dataset: Any) -> Change:
    """A chain of TokenClassification with these labels and fields of the data set."""

    def change(spec: dict[str, Any]) -> None:
        source = {key: spec["task"]["dataset"][key] for key in ("uri", "splits")}
        labels_or_default = list(labels) or ["O", "B-person", "I-person"]
        spec["task"] = {"type": "TokenClassification", "dataset": {**source, **dataset}, "labels": labels_or_default}

    return change


def regress(spec: dict[str, Any]) -> None:
    """Makes the good chain one of a regression, judged by mse."""
    del spec["task"]["labels"]
    spec["task"].update(type="Regression", metric="mse")
    spec["teacher"]["gate"] = {"maxMetric": 0.5}
    spec["stages"][1]["gate"] = {"maxMetric": 0.6, "maxDrop": 2}
