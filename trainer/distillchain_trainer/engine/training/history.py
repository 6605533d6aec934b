"""The course of a training, kept small: losses thinned to what a curve can show, and validation after each epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path

from distillchain_api.wire.manifest import SplitMetrics
from distillchain_api.wire.records import HISTORY_FILE, HISTORY_POINTS, HistoryPoint, lines_of

LOSSES_FILE = "losses.json"


class History:
    """The points so far, including those of earlier attempts."""

    def __init__(self, points: list[HistoryPoint], losses: list[float] | None = None) -> None:
        self._points = points
        self._losses = losses or []  # of the steps since the last point

    @classmethod
    def read(cls, state: Path | None) -> History:
        """The history in a saved state; empty without one, or in a state of an older release."""
        path = state / HISTORY_FILE if state else None
        if path is None or not path.exists():
            return cls([])
        points = [HistoryPoint.parse(line) for line in lines_of(path.read_text(encoding="utf-8"))]
        losses = path.with_name(LOSSES_FILE)
        return cls(points, json.loads(losses.read_text(encoding="utf-8")) if losses.exists() else None)

    @property
    def points(self) -> list[HistoryPoint]:
        """In step order."""
        return list(self._points)

    def trained(self, step: int, of: int, epoch: float, loss: float, learning_rate: float | None) -> None:
        """Adds the loss of a step. Several steps are averaged into one point; the last step always makes a point."""
        self._losses.append(loss)
        # The rounding up keeps the number of points at HISTORY_POINTS or below, whatever the number of steps.
        if step % math.ceil(of / HISTORY_POINTS) == 0 or step >= of:
            self.ended(step, epoch, learning_rate)

    def ended(self, step: int, epoch: float, learning_rate: float | None) -> None:
        """Adds a point for the losses since the last one, if there are any: a training may end before its last step."""
        if not self._losses:
            return
        mean = sum(self._losses) / len(self._losses)
        self._losses = []
        self._points.append(
            HistoryPoint(step=step, epoch=round(epoch, 6), loss=round(mean, 6), learning_rate=learning_rate)
        )

    def measured(self, step: int, epoch: float, metrics: SplitMetrics) -> None:
        """Adds the validation metrics after a step; measuring a step again replaces the earlier point.

        A metric that is not a finite number, such as the perplexity of a student at its start, is left out.
        """
        # A training that is resumed at the end of an epoch may measure it a second time.
        self._points = [point for point in self._points if (point.step, point.validation is None) != (step, False)]
        if numbers := {name: value for name, value in metrics.items() if math.isfinite(value)}:
            self._points.append(HistoryPoint(step=step, epoch=epoch, validation=numbers))

    def write_state(self, folder: Path) -> None:
        """For `read`: the points, and the losses that are not part of one yet."""
        self.write(folder)
        (folder / LOSSES_FILE).write_text(json.dumps(self._losses), encoding="utf-8")

    def write(self, folder: Path) -> None:
        """The points, one JSON object per line."""
        lines = "".join(point.to_json() + "\n" for point in self._points)
        (folder / HISTORY_FILE).write_text(lines, encoding="utf-8")
