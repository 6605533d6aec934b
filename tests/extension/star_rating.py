"""A toy task type for tests/test_extension.py: a number of stars for each text. This file goes to api/tasks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distillchain_api.faults import Expect
from distillchain_api.metrics import Metric
from distillchain_api.task import Task, TextDataset

CLOSENESS = Metric("closeness", "closeness")


class StarRating(Task):
    """One number for each text; the label column holds it."""

    metrics: ClassVar[tuple[Metric, ...]] = (CLOSENESS,)

    type: Literal["StarRating"]
    """StarRating: one number for each text."""
    dataset: TextDataset
    stars: Annotated[int, Field(ge=2, le=10), Expect("a whole number from 2 to 10")]
    """The most stars a text can have."""
    metric: Literal["closeness"] = "closeness"
    """1 - mean absolute error / stars."""


TASK = StarRating
