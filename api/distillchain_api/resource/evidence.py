"""`spec.evidence`: the same student without the steps in between, to see whether they paid."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distillchain_api.base import Document
from distillchain_api.cel import cel, fault, rules
from distillchain_api.faults import Expect, expected

Control = Literal["Direct", "FromRoot"]
ONE_STAGE = "with one stage the chain is FromRoot itself; add Direct, or remove evidence"
MAX_SEEDS = 20
_SMALLEST_GAIN = 1e-6


class Outcome(StrEnum):
    """What the comparison with the controls shows."""

    WORTH_IT = "WorthIt"
    NOT_WORTH_IT = "NotWorthIt"
    UNDECIDED = "Undecided"


class Evidence(Document):
    """Controls beside the chain. They start after it, or in spare slots of `maxParallelJobs`, and cannot fail it."""

    controls: Annotated[
        list[Control],
        Field(min_length=1, max_length=2, json_schema_extra={"x-kubernetes-list-type": "set"}),
        Expect("a list of Direct and FromRoot"),
    ] = ["Direct", "FromRoot"]
    """Direct: the student learns from labels alone. FromRoot: the root teacher teaches it. Both have the recipe and the
    number of steps of the stage that they are compared with."""
    seeds: Annotated[int, Field(ge=2, le=MAX_SEEDS), Expect(f"a whole number from 2 to {MAX_SEEDS}")] = 3
    """Students of the stage and of each control. The first has the seed of the stage, the next ones that seed plus 1,
    2, and so on."""
    # Not `on`, which YAML 1.1 and with it kubectl read as true.
    stages: Literal["Last", "Every"] = "Last"
    """Which stages are compared: the last one, or every stage."""
    smallest_gain: (
        Annotated[
            float,
            Field(
                ge=_SMALLEST_GAIN,
                le=1_000_000,
                # The API server compares a whole number with the whole part of a bound, so it would accept 0.
                json_schema_extra=rules(cel("self >= 0.000001", "expected a number from 0.000001 to 1000000")),
            ),
            Expect("a number from 0.000001 to 1000000", "for half a point of accuracy write 0.005"),
        ]
        | None
    ) = None
    """The smallest gain in `task.metric` that makes the steps in between worth their cost. Empty: 0.005 for shares
    and correlations, otherwise 1 % of the value of the chain's student."""

    @model_validator(mode="after")
    def _controls_differ(self) -> Self:
        for index, control in enumerate(self.controls):
            if control in self.controls[:index]:
                raise fault(f"controls[{index}]", expected(control, "every control once", "remove one"))
        return self


EVIDENCE_RULES = [
    cel(
        "!has(self.evidence) || self.stages.size() > 1 || 'Direct' in self.evidence.controls",
        f"evidence.controls: {ONE_STAGE}",
        fieldPath=".evidence.controls",
    )
]
"""For ChainSpec."""
