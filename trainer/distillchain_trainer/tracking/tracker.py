"""What each tracker implements. Its methods may take long and may raise: they run in the tracker's own process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from distillchain_trainer.tracking.messages import Outcome, Point, Start


class Tracker(Protocol):
    """One run on one tracker."""

    def start(self, start: Start) -> None:
        """Opens the run, or continues it."""

    def log(self, point: Point) -> None:
        """Adds values after a step, unless the run has this step of the series already."""

    def flush(self) -> None:
        """Makes sure that what was logged outlives the process."""

    def end(self, outcome: Outcome, facts: Mapping[str, str]) -> None:
        """Closes the run. An interrupted one is continued by the next attempt."""
