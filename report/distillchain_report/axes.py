"""Axes of a chart: which part of the numbers is shown, round ticks, and the frame of a panel with its grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distillchain_report.svg import GRID, MUTED, Drawing, Point, width_of

TICK_SIZE = 8  # font size of the numbers
GAP = 5  # between numbers and panel


@dataclass(frozen=True)
class Axis:
    """The numbers from `low` to `high`, with the ticks among them."""

    low: float
    high: float
    ticks: Sequence[float]
    label: Callable[[float], str]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value is, from 0 at `low` to 1 at `high`."""
        if self.is_log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    @property
    def label_width(self) -> float:
        """The width of the longest number."""
        return max((width_of(self.label(tick), TICK_SIZE) for tick in self.ticks), default=0)


@dataclass(frozen=True)
class Panel:
    """A rectangle of a drawing with an axis in each direction."""

    drawing: Drawing
    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def place(self, x: float, y: float) -> Point:
        """The point of the drawing for a pair of values."""
        return (
            self.left + self.x.share(x) * (self.right - self.left),
            self.bottom - self.y.share(y) * (self.bottom - self.top),
        )

    def line(self, values: Sequence[Point], colour: str, *, width: float = 1.0, opacity: float = 1.0) -> None:
        """A line through pairs of values."""
        self.drawing.line([self.place(*pair) for pair in values], colour, width=width, opacity=opacity)

    def level(self, y: float, *, dash: str) -> None:
        """A dashed line across the panel."""
        height = self.place(self.x.low, y)[1]
        self.drawing.line([(self.left, height), (self.right, height)], MUTED, dash=dash)

    def draw_frame(self, *, x_numbers: bool = True) -> None:
        """The grid, both axes and their numbers."""
        for tick in self.x.ticks:
            across = self.place(tick, self.y.low)[0]
            self.drawing.line([(across, self.top), (across, self.bottom)], GRID, width=0.6)
            if x_numbers:
                place = (across, self.bottom + TICK_SIZE + GAP)
                self.drawing.word(place, self.x.label(tick), size=TICK_SIZE, colour=MUTED, anchor="middle")
        for tick in self.y.ticks:
            height = self.place(self.x.low, tick)[1]
            self.drawing.line([(self.left, height), (self.right, height)], GRID, width=0.6)
            # A third of the font's size puts the middle of the digits at the height of the line.
            place = (self.left - GAP, height + TICK_SIZE / 3)
            self.drawing.word(place, self.y.label(tick), size=TICK_SIZE, colour=MUTED, anchor="end")
        corners = [(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)]
        self.drawing.line(corners, GRID, width=0.8)


def linear_ticks(low: float, high: float, *, most: int, integer: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most about `most` intervals; at least two where possible."""
    exponent = math.floor(math.log10((high - low) / most))
    steps = [factor * 10.0**power for power in range(exponent - 1, exponent + 3) for factor in (1, 2, 5)]
    found: list[float] = []
    # From the finest to the coarsest; the first that is coarse enough is taken.
    for step in (step for step in steps if step >= 1 or not integer):
        ticks = [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        # A single tick would not show the scale, so the finer step is kept.
        if len(ticks) < 2 <= len(found):
            break
        found = ticks
        if len(ticks) <= most + 1:
            break
    return found


def log_ticks(low: float, high: float, *, factors: Sequence[int]) -> list[float]:
    """The powers of ten times `factors` from `low` to `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def padded(values: Iterable[float], margin: float) -> tuple[float, float]:
    """The range of `values` with `margin` of its width on both sides; never empty."""
    found = list(values)
    low, high = min(found), max(found)
    # A single value has no width; a tenth of its size is as good as any.
    span = (high - low) or abs(high) / 10 or 1.0
    return low - margin * span, high + margin * span
