"""What the trainer sends to the process of a tracker: one JSON object per line. Knows no tracker."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from distillchain_api.base import Record
from distillchain_api.resource.tracking import Mlflow, TensorBoard, Wandb
from distillchain_api.wire.work_order import StorageAddress

Outcome = Literal["committed", "interrupted", "failed"]


class Start(Record):
    """The run: sent once, when the training begins or continues."""

    kind: Literal["start"] = "start"
    run: str
    """Unique to the run. An attempt that continues a saved state has the one of the attempt before."""
    resumed_at: int | None = None
    """Step of the saved state from which the run continues; None: the run is new."""
    name: str
    """`<chain>/<stage>`."""
    chain: str
    """`<namespace>/<chain>`."""
    stage: str
    digest: str
    attempt: str
    parameters: dict[str, str | int | float | bool]
    """The recipe, one entry for each field: `training.epochs`."""
    lineage: dict[str, str]
    """Digests and sources of what the student is made from."""


class Point(Record):
    """Values after a step."""

    kind: Literal["point"] = "point"
    step: int
    values: dict[str, float]
    """By name: those of the training begin with `train/`, those of a measurement with the name of the split."""

    @property
    def series(self) -> str:
        """Points of one series have the same names and come in the order of their steps."""
        return next(iter(self.values)).partition("/")[0]


class Flush(Record):
    """A state was saved: what was sent so far should outlive the process."""

    kind: Literal["flush"] = "flush"


class End(Record):
    """Nothing follows."""

    kind: Literal["end"] = "end"
    outcome: Outcome
    facts: dict[str, str] = Field(default_factory=dict)
    """What is known of a committed student: the URI of its checkpoint, and digests."""


Message = Start | Point | Flush | End
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def parse_message(line: bytes) -> Message:
    """The message of one line."""
    return _MESSAGE.validate_json(line)


class Setup(Record):
    """What the process of a tracker gets as its argument. One of the trackers is set."""

    folder: str
    """For files in the making."""
    storage: StorageAddress
    tensor_board: TensorBoard | None = None
    mlflow: Mlflow | None = None
    wandb: Wandb | None = None
