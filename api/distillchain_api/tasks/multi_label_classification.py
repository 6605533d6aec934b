"""MultiLabelClassification: one text or a pair of texts to any number of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.faults import Expect, Fault, error_of, expected
from distillchain_api.label_names import number_fault
from distillchain_api.metrics import HAMMING_LOSS, MACRO_F1, MICRO_F1, SUBSET_ACCURACY, Metric
from distillchain_api.task import TextDataset
from distillchain_api.transfer import SequenceTask
from distillchain_api.values import ClassName, Text

MAX_LABELS = 1000
CELLS_OF_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


class MultiLabelDataset(TextDataset):
    """Rows with one or two text columns and a column of labels: a list of names or numbers, or a text with separators.
    A row without a label has an empty cell or an empty list."""

    separator: Text = ","
    """Separates the labels of a cell that is text, as in csv and tsv: joy,surprise. Lists, as in jsonl, parquet and on
    the hub, need none."""


class MultiLabelClassification(SequenceTask):
    """One text or a pair of texts to any number of labels, each of them with a probability of its own."""

    metrics: ClassVar[tuple[Metric, ...]] = (MICRO_F1, MACRO_F1, SUBSET_ACCURACY, HAMMING_LOSS)
    outputs: ClassVar[Literal["Classes", "Labels", "Numbers", "Tokens"]] = "Labels"

    type: Literal["MultiLabelClassification"]
    """MultiLabelClassification: one text or a pair of texts to any number of labels."""
    dataset: MultiLabelDataset
    labels: Annotated[
        list[ClassName],
        Field(min_length=2, max_length=MAX_LABELS, json_schema_extra={"x-kubernetes-list-type": "set"}),
        Expect("the names of at least two classes, in class order", "for example [negative, positive]"),
    ]
    """Names of the labels in the order of the outputs; every checkpoint's id2label is matched to them by name."""
    metric: Literal["microF1", "macroF1", "subsetAccuracy", "hammingLoss"] = "microF1"
    """The metric of gates and results, a share from 0 to 1. A label is predicted where its probability is above 0.5.
    microF1 counts all labels of all rows together; macroF1 averages over the labels that validation has; subsetAccuracy
    is the share of rows in which all labels are right; hammingLoss, better when lower, is the share of wrong cells in
    the table of rows and labels."""

    @model_validator(mode="after")
    def _labels_can_be_told_apart(self) -> Self:
        if faults := list(self._faults()):
            raise error_of(faults)
        return self

    def _faults(self) -> Iterator[Fault]:
        if len(set(self.labels)) != len(self.labels):
            yield Fault("labels", expected(self.labels, "every class name once"))
        elif problem := number_fault(self.labels):
            yield Fault("labels", problem)
        if not any(name.lower().endswith(CELLS_OF_TEXT) for name in self.dataset.splits.to_document().values()):
            return
        separator = self.dataset.separator
        for index, label in enumerate(self.labels):
            if separator in label:
                expectation = f"a name without dataset.separator {separator}"
                remedy = "choose a separator that no label contains"
                yield Fault(f"labels[{index}]", expected(label, expectation, remedy))


TASK = MultiLabelClassification
