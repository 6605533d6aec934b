"""TextClassification: one text or a pair of texts to one of several classes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.cel import fault
from distillchain_api.faults import Expect, expected
from distillchain_api.label_names import number_fault
from distillchain_api.metrics import ACCURACY, MACRO_F1, Metric
from distillchain_api.transfer import SequenceTask
from distillchain_api.values import ClassName

MAX_LABELS = 1000


class TextClassification(SequenceTask):
    """One text or a pair of texts to one class. The label column holds a class's name, or its number from 0."""

    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, MACRO_F1)

    type: Literal["TextClassification"]
    """TextClassification: one text or a pair of texts to one class."""
    labels: Annotated[
        list[ClassName],
        Field(min_length=2, max_length=MAX_LABELS, json_schema_extra={"x-kubernetes-list-type": "set"}),
        Expect("the names of at least two classes, in class order", "for example [negative, positive]"),
    ]
    """Names of the classes in class order; every checkpoint's id2label is matched to them by name."""
    metric: Literal["accuracy", "macroF1"] = "accuracy"
    """The metric of gates and results, a share from 0 to 1. macroF1 averages over the classes of validation."""

    @property
    def class_names(self) -> list[str]:
        """See Task."""
        return self.labels

    @model_validator(mode="after")
    def _labels_differ(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise fault("labels", expected(self.labels, "every class name once"))
        if problem := number_fault(self.labels):
            raise fault("labels", problem)
        return self


TASK = TextClassification
