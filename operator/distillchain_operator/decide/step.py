"""What one vertex does next."""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_api.resource.status import StageStatus
from distillchain_operator.decide.actions import Action
from distillchain_operator.decide.scheduling import Start


@dataclass(frozen=True)
class Step:
    """What one vertex does next.

    Attributes:
        entry: its status, unless `start` is admitted.
        start: the Job that it wants to start.
    """

    entry: StageStatus
    actions: tuple[Action, ...] = ()
    start: Start | None = None
