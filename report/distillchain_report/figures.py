"""The report's figures: drawn by matplotlib, handed over as SVG that stands inside a page.

Colours are CSS variables of the page, so a figure follows light, dark and print; words are text, not outlines; every
figure has a title and a description for those who hear it.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from distillchain_report.model import ModelReport, Report, StageReport
from distillchain_report.words import METRIC_NAMES, factor, percent, share

NEAR_CHANCE = 0.15  # of the teacher's metric
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"

# Stand-ins for the page's CSS variables: matplotlib wants colours, so each variable has one that nothing else uses.
INK, MUTED, GRID, ACCENT, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", ACCENT: "--accent", SECOND: "--second"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
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


def retention_figure(report: Report) -> str | None:
    """What is left of the root teacher's metric against how much smaller a model is; None without a student."""
    students = [model for model in report.models if model.retention]
    if report.root is None or not students:
        return None
    metric = METRIC_NAMES[report.metric]
    told = "; ".join(
        f"{model.name}: {percent(model.retention.value)} at {factor(model.compression)} fewer parameters"
        for model in students
        if model.retention
    )
    return _svg(
        "retention",
        (6.4, 3.7),
        partial(_draw_retention, report=report, students=students),
        title=f"Share of the teacher’s {metric} kept, against compression",
        description=f"The teacher is the reference: 100 % at 1×. {told}.",
    )


def _draw_retention(figure: Figure, *, report: Report, students: list[ModelReport]) -> None:
    axes = figure.subplots()
    axes.axhline(100, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    assert report.root is not None
    _draw_chance(axes, report, students)
    axes.plot([1.0], [100.0], "D", color=INK, markersize=7, zorder=3)
    _say(axes, "teacher", (1, 100), (0, 8), fontweight="bold")
    places = [(model.compression, 100 * model.retention.value) for model in students if model.retention]
    axes.plot([1.0, *(x for x, _ in places)], [100.0, *(y for _, y in places)], color=ACCENT, linewidth=1, alpha=0.5)
    for model, (x, y) in zip(students, places, strict=True):
        kept = model.retention
        if kept and kept.low is not None and kept.high is not None:
            below, above = y - 100 * kept.low, 100 * kept.high - y
            axes.errorbar([x], [y], yerr=[[max(below, 0)], [max(above, 0)]], color=ACCENT, capsize=3, linewidth=1.4)
        axes.plot([x], [y], "o", color=ACCENT, markersize=6, zorder=3)
    _name_points(axes, students, places)
    axes.set_xscale("log")
    widest = max(model.compression for model in students)
    axes.set_xlim(min(0.85, 0.85 * min(x for x, _ in places)), max(widest * 1.7, 3))
    decades_fit = widest < 500  # wider, and the words of 2 and 5 would write over each other
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades_fit else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}×"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=3))
    axes.margins(y=0.3 if len(students) > 4 else 0.14)
    axes.set_xlabel("times fewer parameters than the teacher (log scale)")
    axes.set_ylabel(f"{METRIC_NAMES[report.metric]} kept")


def _draw_chance(axes: Axes, report: Report, students: list[ModelReport]) -> None:
    """What knowing nothing keeps, where a student comes near it; elsewhere it would only press the rest together."""
    if report.most_frequent is None or report.root is None:
        return
    chance = report.most_frequent.value / report.root.metric.value
    ends = [model.retention.low or model.retention.value for model in students if model.retention]
    if min(ends) < chance + NEAR_CHANCE:
        axes.axhline(100 * chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        _say(axes, "always the most frequent class", (1, 100 * chance), (0, 4), color=MUTED, fontsize=8)


def _name_points(axes: Axes, students: list[ModelReport], places: list[tuple[float, float]]) -> None:
    """Names beside their points; slanted where there are many, so that neighbours do not write over each other."""
    many = len(students) > 4
    for model, place in zip(students, places, strict=True):
        _say(axes, model.name, place, (3, 7) if many else (7, 6), rotation=40 if many else 0, rotation_mode="anchor")


def _say(axes: Axes, text: str, place: tuple[float, float], points: tuple[float, float], **style: Any) -> None:
    """Words some points beside a place in the data."""
    axes.annotate(text, place, xytext=points, textcoords="offset points", **style)


def history_figure(report: Report, stage: StageReport) -> str | None:
    """Loss and validation metric of one stage over its epochs; None when its history was not kept."""
    if not stage.history:
        return None
    metric = METRIC_NAMES[report.metric]
    measured = [point for point in stage.history if point.validation]
    losses = [point.loss for point in stage.history if point.loss is not None]
    told = f"Loss from {losses[0]:.3g} to {losses[-1]:.3g}. " if losses else ""
    values = ", ".join(share(point.validation[report.metric]) for point in measured if point.validation)
    teacher = f" Its teacher reaches {share(stage.teacher_metric)}." if stage.teacher_metric is not None else ""
    return _svg(
        f"history-{stage.digest[:12]}",
        (3.0, 2.5),
        partial(_draw_history, report=report, stage=stage),
        title=f"Training of {stage.name}",
        description=f"{told}{metric.capitalize()} on validation, epoch by epoch: {values}.{teacher}",
    )


def _draw_history(figure: Figure, *, report: Report, stage: StageReport) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    trained = [(point.epoch, point.loss) for point in stage.history if point.loss is not None]
    upper.plot([epoch for epoch, _ in trained], [loss for _, loss in trained], color=SECOND, linewidth=1.2)
    upper.set_title("training loss", loc="left", fontsize=8, color=MUTED)
    measured = [(point.epoch, point.validation[report.metric]) for point in stage.history if point.validation]
    lower.plot([epoch for epoch, _ in measured], [value for _, value in measured], "o-", color=ACCENT, markersize=3.5)
    lower.set_title(f"{METRIC_NAMES[report.metric]} on validation", loc="left", fontsize=8, color=MUTED)
    if stage.teacher_metric is not None:
        lower.axhline(stage.teacher_metric, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        edge: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "color": MUTED, "fontsize": 7.5}
        _say(lower, "its teacher", (1, stage.teacher_metric), (-2, -9), **edge)
    epochs = max(point.epoch for point in stage.history)
    lower.set_xlim(0, epochs * 1.03)
    lower.set_xlabel("epoch", labelpad=1)
    lower.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=epochs > 1))
    lower.margins(y=0.25)
    upper.set_ylim(bottom=0)
    lower.set_ylim(top=min(lower.get_ylim()[1], 1.02))
    for axes in (upper, lower):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
        axes.tick_params(labelsize=8)


def _svg(
    name: str, inches: tuple[float, float], draw: Callable[[Figure], None], *, title: str, description: str
) -> str:
    """The figure as an `svg` element: no size of its own, ids that no other figure has, colours of the page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=inches, layout="constrained")
        draw(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # What is parsed here matplotlib has just written; nothing of it is from outside.
    root = ET.fromstring(drawn.getvalue())  # noqa: S314
    _name_ids(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{SVG}}}{kind}", {"id": f"{name}-{'title' if kind == 'title' else 'description'}"})
        element.text = text
        root.insert(place, element)
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    return ET.tostring(root, encoding="unicode")


def _name_ids(root: ET.Element, name: str) -> None:
    """Ids and what points at them get the figure's name; stand-in colours become variables; metadata goes."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}metadata":
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            if key == "id":
                parent.set(key, f"{name}-{value}")
            elif key.endswith("href"):
                parent.set(key, value.replace("#", f"#{name}-"))
            elif "url(#" in value:
                parent.set(key, value.replace("url(#", f"url(#{name}-"))
            elif "#" in value:
                parent.set(key, _with_variables(value))
        if parent.tag == f"{{{SVG}}}style" and parent.text:
            parent.text = ""  # `* {stroke-linejoin: round}` would reach the whole page


def _with_variables(style: str) -> str:
    return re.sub(
        r"#0\d0\d0\d", lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], style
    )
