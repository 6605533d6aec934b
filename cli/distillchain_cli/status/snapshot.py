"""What `status -w` knows of a chain at one moment, and the losses it has collected. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.wire import answer
from distillchain_cli.status.events import Event


@dataclass
class Losses:
    """Training losses by stage and step, from the log where it can be read, and from the status."""

    by_stage: dict[str, dict[int, float]] = field(default_factory=dict)
    last_status_step: dict[str, int] = field(default_factory=dict)
    """The latest step of each stage in the status."""

    def add(self, line: answer.Progress) -> None:
        """Takes the loss of a progress line of training."""
        if line.phase != "Train" or line.loss is None:
            return
        self.by_stage.setdefault(line.stage, {})[line.step] = line.loss

    def add_from_status(self, line: answer.Progress) -> None:
        """Takes the loss in a status. The status reports steps in order, so an earlier step is of another attempt.

        The losses of the attempt before it are then dropped from that step on.
        """
        if line.phase != "Train":
            return
        if line.step < self.last_status_step.get(line.stage, 0):
            kept = self.by_stage.get(line.stage, {}).copy()  # a copy, because another thread adds to it
            self.by_stage[line.stage] = {step: loss for step, loss in kept.items() if step < line.step}
        self.last_status_step[line.stage] = line.step
        self.add(line)

    def of(self, stage: str) -> list[float]:
        """The losses of a stage in the order of steps."""
        return [loss for _, loss in sorted(self.by_stage.get(stage, {}).items())]


@dataclass(frozen=True)
class Snapshot:
    """A chain at one moment.

    Attributes:
        event: the latest Event.
        losses: of the stage that trains.
        disconnected: why the connection is being reopened; empty if it is open.
    """

    chain: dict[str, Any]
    status: ChainStatus
    now: datetime
    event: Event | None = None
    losses: Sequence[float] = ()
    disconnected: str = ""


def training_stage(status: ChainStatus) -> StageStatus | None:
    """The stage that runs and has reported progress."""
    return next((entry for entry in status.entries if entry.phase == "Running" and entry.progress), None)


def progress_of(entry: StageStatus) -> answer.Progress | None:
    """A stage's progress as a progress line; None if there is none, or if a later release wrote it."""
    if entry.progress is None:
        return None
    seen = entry.progress
    try:
        return answer.Progress.model_validate(
            {
                "stage": entry.name,
                "phase": seen.phase,
                "step": seen.step,
                "of": seen.of,
                "loss": seen.loss and float(seen.loss),  # the status holds decimals as text
                "examples_per_second": seen.examples_per_second and float(seen.examples_per_second),
                "eta_s": seen.eta_seconds,
            }
        )
    except ValidationError:
        return None
