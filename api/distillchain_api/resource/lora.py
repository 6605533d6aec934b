"""`student.lora`: only a small adapter of the student is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from distillchain_api.base import Document
from distillchain_api.cel import fault
from distillchain_api.faults import Expect, expected
from distillchain_api.values import PlainText

MAX_TARGETS = 64


def _each_once(names: list[str]) -> list[str]:
    """Sorted: their order means nothing, so it must not change the digest."""
    if len(set(names)) < len(names):
        raise fault("", expected(names, "every name once"))
    return sorted(names)


class Lora(Document):
    """Train a LoRA adapter (Hu et al. 2021) and the head for the task; all other weights stay as they are. The adapter
    is merged into the weights when the student is committed."""

    rank: Annotated[int, Field(ge=1, le=1024), Expect("a whole number from 1 to 1024")] = 16
    """Rank of the product of two small matrices that is added to each weight matrix."""
    alpha: Annotated[float, Field(gt=0, le=10_000), Expect("a number above 0 and at most 10000")] = 32.0
    """The product is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1), Expect("a share from 0 to below 1")] = 0.0
    """Share of the adapter's inputs that are set to 0 in training."""
    target_modules: (
        Annotated[
            list[PlainText],
            Field(min_length=1, max_length=MAX_TARGETS, json_schema_extra={"x-kubernetes-list-type": "set"}),
            AfterValidator(_each_once),
            Expect("a list of names of linear layers, such as q_proj"),
        ]
        | None
    ) = None
    """Names of the linear layers that get an adapter, such as q_proj and v_proj; empty: all except the head."""

    @property
    def shown(self) -> str:
        """`LoRA of rank 16`."""
        return f"LoRA of rank {self.rank}"
