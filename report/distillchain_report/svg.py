"""Matplotlib figures as SVG elements that stand inside a page.

Colours are CSS variables of the page, so that a figure follows light, dark and print. Text stays text instead of
outlines. Every figure has a title and a description for screen readers.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

# Matplotlib accepts only colours, so each CSS variable is represented by a colour that nothing else uses.
INK, MUTED, GRID, ACCENT, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--accent", SECOND: "--second"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may contain a dollar sign
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def draw_svg(
    name: str, inches: tuple[float, float], draw: Callable[[Figure], None], *, title: str, description: str
) -> str:
    """The figure as an `svg` element without a fixed size.

    Args:
        name: prefix of the element's ids, which must be unique in the page.
    """
    # Without a salt matplotlib's ids are random, and the same store would not give the same page.
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        # Not by pyplot, which keeps every figure in a global list.
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # Safe to parse: matplotlib has just written it, and has escaped all names.
    root = ET.fromstring(drawn.getvalue())  # noqa: S314
    _adapt_to_page(root, name)
    # With a fixed size the figure could not shrink on a narrow screen; the viewBox keeps its proportions.
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{kind}", {"id": f"{name}-{'title' if kind == 'title' else 'description'}"})
        element.text = text
        root.insert(place, element)
    # Otherwise ElementTree writes `ns0:svg`, which HTML does not know as SVG.
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _adapt_to_page(root: ET.Element, name: str) -> None:
    """Prefixes ids and references to them, puts CSS variables in place of colours, and removes metadata."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata":
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            if key == "id":
                parent.set(key, f"{name}-{value}")
            elif key.endswith("href"):
                parent.set(key, value.replace("#", f"#{name}-"))
            # Before colours, which also contain a `#`.
            elif "url(#" in value:
                parent.set(key, value.replace("url(#", f"url(#{name}-"))
            elif "#" in value:
                parent.set(key, _with_variables(value))
        if parent.tag == f"{{{SVG}}}style" and parent.text:
            parent.text = ""  # `* {stroke-linejoin: round}` would apply to the whole page


def _with_variables(style: str) -> str:
    return re.sub(
        r"#0\d0\d0\d", lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], style
    )
