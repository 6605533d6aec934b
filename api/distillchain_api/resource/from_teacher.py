"""`student.fromTeacher`: a student that starts as some layers of its teacher."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected

MAX_LAYERS = 1000

LayerIndex = Annotated[int, Field(ge=0, lt=MAX_LAYERS), Expect("the number of a layer, counted from 0")]


class FromTeacher(Document):
    """The teacher's embeddings, head and tokenizer, and some of its layers. Pretrained, because all weights are the
    teacher's."""

    layers: Annotated[int, Field(ge=1, le=MAX_LAYERS), Expect("a number of layers from 1 to 1000")] | None = None
    """How many of its layers, evenly spaced, with the first and the last: 4 of 12 are 0, 4, 7 and 11."""
    indices: (
        Annotated[
            list[LayerIndex],
            Field(min_length=1, max_length=MAX_LAYERS, json_schema_extra={"x-kubernetes-list-type": "set"}),
            Expect("a list of layers, counted from 0"),
        ]
        | None
    ) = None
    """Indices of its layers, counted from 0, in rising order."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if (self.layers is None) == (self.indices is None):
            raise fault("", f"got {'both' if self.layers else 'neither'}, expected either layers or indices")
        if self.indices and self.indices != sorted(set(self.indices)):
            raise fault("indices", expected(self.indices, "every layer once, in rising order"))
        return self

    model_config = {
        "json_schema_extra": rules(
            cel("has(self.layers) != has(self.indices)", "expected either layers or indices"),
            cel(
                "!has(self.indices) || self.indices.isSorted()", "indices: expected rising order", fieldPath=".indices"
            ),
        )
    }

    def chosen(self, count: int) -> list[int]:
        """The numbers of the layers that are taken from `count`. Raises: ValueError with the reason."""
        if self.indices is not None:
            if self.indices[-1] >= count:
                raise ValueError(f"got {self.indices[-1]}, expected layers from 0 to {count - 1}")
            return self.indices
        assert self.layers is not None
        if self.layers > count:
            raise ValueError(f"got {self.layers}, expected {count} at most")
        # In whole numbers: i (n - 1) / (k - 1), rounded half up.
        last, steps = count - 1, max(self.layers - 1, 1)
        return [(2 * index * last + steps) // (2 * steps) for index in range(self.layers)]

    @property
    def shown(self) -> str:
        """`4 layers of the teacher` or `layers 0, 2 of the teacher`."""
        if self.indices is not None:
            return f"{_layers(self.indices)} of the teacher"
        return f"{self.layers} {'layer' if self.layers == 1 else 'layers'} of the teacher"


def _layers(indices: list[int]) -> str:
    return f"{'layer' if len(indices) == 1 else 'layers'} {', '.join(map(str, indices))}"
