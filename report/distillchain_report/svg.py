"""Drawings as SVG elements that stand inside a page: lines, points and words. Knows no axes.

Colours are CSS variables of the page, so that a figure follows light, dark and print. Text stays text instead of
outlines. Every drawing has a title and a description for screen readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from markupsafe import Markup, escape

INK, MUTED, GRID, ACCENT, SECOND = "--ink", "--muted", "--grid", "--accent", "--second"

Point = tuple[float, float]


class Drawing:
    """Elements in the order in which they are drawn, the later above the earlier. One unit is a 72nd of an inch."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._elements: list[Markup] = []

    def line(
        self, points: Sequence[Point], colour: str, *, width: float = 1.0, dash: str = "", opacity: float = 1.0
    ) -> None:
        """Straight lines from point to point.

        Args:
            dash: lengths of strokes and gaps, such as "4 3".
        """
        path = "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)
        style = f"fill:none;stroke:var({colour});stroke-width:{_number(width)}"
        style += f";stroke-dasharray:{dash}" if dash else ""
        style += f";opacity:{_number(opacity)}" if opacity < 1 else ""
        self._add('<path d="{}" style="{}"/>', path, style)

    def circle(self, place: Point, radius: float, colour: str) -> None:
        """A filled circle."""
        self._add('<circle cx="{}" cy="{}" r="{}" style="fill:var({})"/>', *map(_number, (*place, radius)), colour)

    def diamond(self, place: Point, radius: float, colour: str) -> None:
        """A filled square that stands on a corner."""
        x, y = place
        corners = ((x - radius, y), (x, y - radius), (x + radius, y), (x, y + radius))
        path = "M" + "L".join(f"{_number(a)} {_number(b)}" for a, b in corners) + "Z"
        self._add('<path d="{}" style="fill:var({})"/>', path, colour)

    def word(
        self,
        place: Point,
        text: str,
        *,
        size: float = 9,
        colour: str = INK,
        anchor: Literal["start", "middle", "end"] = "start",
        bold: bool = False,
        angle: float = 0,
    ) -> None:
        """Text whose baseline starts, has its middle or ends at `place`; `angle` in degrees, counterclockwise."""
        x, y = map(_number, place)
        style = f"fill:var({colour});font-size:{_number(size)}px;text-anchor:{anchor}"
        style += ";font-weight:bold" if bold else ""
        turned = f"rotate({_number(-angle)} {x} {y})" if angle else ""
        rotation = Markup(' transform="{}"').format(turned) if turned else ""
        self._add('<text x="{}" y="{}" style="{}"{}>{}</text>', x, y, style, rotation, text)

    def markup(self, name: str, *, title: str, description: str) -> Markup:
        """The `svg` element, without a fixed size: the page decides how large it is.

        Args:
            name: prefix of the element's ids, which must be unique in the page.
        """
        return Markup(
            '<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" '
            'aria-labelledby="{name}-title {name}-description"><title id="{name}-title">{title}</title>'
            '<desc id="{name}-description">{description}</desc>{elements}</svg>'
        ).format(
            width=_number(self.width),
            height=_number(self.height),
            name=name,
            title=title,
            description=description,
            elements=Markup("").join(self._elements),
        )

    def _add(self, template: str, *values: object) -> None:
        # Markup.format escapes every value: names of stages are the user's.
        self._elements.append(Markup(template).format(*map(escape, values)))  # noqa: S704 - ours


def width_of(text: str, size: float = 9) -> float:
    """About how wide a text is in a sans-serif font; the font of the reader is not known here."""
    return 0.56 * size * len(text)


def _number(value: float) -> str:
    """At most two decimals: a hundredth of a unit cannot be seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
