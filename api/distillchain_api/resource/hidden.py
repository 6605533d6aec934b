"""Losses on hidden states (`distillation.hidden`). The teacher then runs beside the student in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import fault
from distillchain_api.faults import Expect, expected

Weight = Annotated[float, Field(ge=0, le=1000), Expect("a number from 0 to 1000", "0 turns the term off")]
LayerNumber = Annotated[int, Field(ge=0, le=1000), Expect("the number of a layer", "0 is the embeddings, 1 the first")]
Relation = Literal["Query", "Key", "Value"]


class LayerPair(Document):
    """A layer of the student and the one of the teacher that it learns from."""

    student: LayerNumber
    """Layer of the student: 0 is the embeddings, 1 the first layer."""
    teacher: LayerNumber
    """Layer of the teacher."""


class HiddenMSE(Document):
    """The student's hidden states, projected to the teacher's width, copy the teacher's (Jiao et al. 2020)."""

    objective: Literal["HiddenMSE"]
    weight: Weight = 1.0
    """Factor of this loss, which is added to the others; 0 turns off the template's."""
    layers: (
        Annotated[list[LayerPair], Field(min_length=1, max_length=100), Expect("a list of 1 to 100 pairs of layers")]
        | None
    ) = None
    """HiddenMSE: layers that are compared; empty: each layer of the student with one of the teacher, spread evenly."""


class ValueRelation(Document):
    """Relations between tokens in the student's last layer copy those in a layer of the teacher (Wang et al. 2021)."""

    objective: Literal["ValueRelation"]
    weight: Weight = 1.0
    """Factor of this loss, which is added to the others; 0 turns off the template's."""
    teacher_layer: Annotated[int, Field(ge=1, le=1000), Expect("the number of a layer", "1 is the first")] | None = None
    """ValueRelation: layer of the teacher; empty: its last."""
    relations: Annotated[
        list[Relation],
        Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"}),
        Expect("a list of Query, Key and Value"),
    ] = ["Value"]
    """ValueRelation: projections of attention that are compared; their losses are added."""
    relation_heads: Annotated[int, Field(ge=1, le=1000), Expect("a whole number from 1 to 1000")] | None = None
    """ValueRelation: parts that the values of a token are cut into; empty: the largest number that divides both
    models' widths and is at most the teacher's attention heads."""

    @model_validator(mode="after")
    def _relations_differ(self) -> Self:
        # Otherwise a relation would count twice; `weight` is the field for that.
        if len(set(self.relations)) != len(self.relations):
            raise fault("relations", expected(self.relations, "every relation once"))
        return self


if TYPE_CHECKING:
    HiddenTerm = HiddenMSE | ValueRelation
else:
    HiddenTerm = Annotated[HiddenMSE | ValueRelation, Field(discriminator="objective")]
