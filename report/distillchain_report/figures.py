"""The figures of the report: quality against size, and the course of each training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from distillchain_report.model import Estimate, ModelReport, Report, StageReport
from distillchain_report.svg import ACCENT, INK, MUTED, SECOND, draw_svg
from distillchain_report.words import factor, measured, percent

NEAR_CHANCE = 0.15  # of the teacher's metric
CLOSE = 1.5  # ratio of two sizes
MANY_STUDENTS = 4  # with more, names are slanted so that neighbours do not overlap


def quality_figure(report: Report) -> str | None:
    """What each student keeps of the root teacher's metric against how much smaller it is; None without a student.

    Where no share of the metric can be kept, as of an error, the metric itself is drawn.
    """
    shown = _students(report)
    if report.root is None or not shown:
        return None
    name = report.metric.display_name
    if report.metric.has_retention:
        title = f"Share of the teacher’s {name} kept, against compression"
        reference = "The teacher is the reference: 100 % at 1×."
        values = [percent(estimate.value) for _, estimate in shown]
    else:
        title = f"{_capital(name)} against compression"
        reference = f"The teacher has {measured(report.root.metric.value, report.metric)} at 1×."
        values = [measured(estimate.value, report.metric) for _, estimate in shown]
    points = "; ".join(
        f"{model.name}: {value} at {_size(model.compression)} parameters"
        for (model, _), value in zip(shown, values, strict=True)
    )
    draw = partial(_draw_quality, report=report, shown=shown)
    return draw_svg("quality", (6.4, 3.7), draw, title=title, description=f"{reference} {points}.")


def _size(compression: float) -> str:
    """`94x fewer`, or `1.1x as many` for a student that is larger than its teacher."""
    return f"{factor(compression)} fewer" if compression >= 1 else f"{factor(1 / compression)} as many"


def _students(report: Report) -> list[tuple[ModelReport, Estimate]]:
    """The students that can be drawn, each with the height of its point."""
    students = [model for model in report.models if model is not report.root]
    if not report.metric.has_retention:
        return [(model, model.metric) for model in students]
    return [(model, model.retention) for model in students if model.retention]


def _draw_quality(figure: Figure, *, report: Report, shown: Sequence[tuple[ModelReport, Estimate]]) -> None:
    axes = figure.subplots()
    assert report.root is not None
    scale, teacher = (100.0, 100.0) if report.metric.has_retention else (1.0, report.root.metric.value)
    axes.axhline(teacher, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    _draw_chance(axes, report, shown)
    # Above the lines (zorder), which end in the points.
    axes.plot([1.0], [teacher], "D", color=INK, markersize=7, zorder=3)
    _write(axes, "teacher", (1, teacher), (0, 8), fontweight="bold")
    points = [(model.compression, scale * estimate.value) for model, estimate in shown]
    axes.plot([1.0, *(x for x, _ in points)], [teacher, *(y for _, y in points)], color=ACCENT, linewidth=1, alpha=0.5)
    for (_, estimate), (x, y) in zip(shown, points, strict=True):
        if estimate.low is not None and estimate.high is not None:
            # A bootstrap interval need not contain the measured value, and matplotlib refuses a negative length.
            ends = [[max(y - scale * estimate.low, 0)], [max(scale * estimate.high - y, 0)]]
            axes.errorbar([x], [y], yerr=ends, color=ACCENT, capsize=3, linewidth=1.4)
        axes.plot([x], [y], "o", color=ACCENT, markersize=6, zorder=3)
    many = len(shown) > MANY_STUDENTS
    before, below = 1.0, False
    for (model, _), point in zip(shown, points, strict=True):
        # Two names above points of about the same size would lie on each other.
        below = not many and not below and max(point[0] / before, before / point[0]) < CLOSE
        before = point[0]
        offset = (3, 7) if many else (7, -15 if below else 6)
        _write(axes, model.name, point, offset, rotation=40 if many else 0, rotation_mode="anchor")
    _scale_axes(axes, [x for x, _ in points], unit=" %" if report.metric.has_retention else "", many=many)
    axes.set_ylabel(f"{report.metric.display_name}{' kept' if report.metric.has_retention else _on_validation(report)}")


def _on_validation(report: Report) -> str:
    """Ends the name of the metric beside an axis; readers expect the better point to be the higher one."""
    return " on validation" if report.metric.higher_is_better else " on validation (lower is better)"


def _capital(name: str) -> str:
    # Not `capitalize`, which would write the F1 of "micro F1" in lower case.
    return name[:1].upper() + name[1:]


def _scale_axes(axes: Axes, compressions: list[float], *, unit: str, many: bool) -> None:
    widest = max(compressions)
    axes.set_xscale("log")
    # A student can be larger than its teacher; room on the right is for the names beside the points.
    axes.set_xlim(min(0.85, 0.85 * min(compressions)), max(widest * 1.7, 3))
    decades_fit = widest < 500  # on a wider axis the labels of 2 and 5 would overlap
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades_fit else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}×"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=3))
    # Slanted names stand higher, so they need more room above the points.
    axes.margins(y=0.3 if many else 0.14)
    axes.set_xlabel("times fewer parameters than the teacher (log scale)")


def _draw_chance(axes: Axes, report: Report, shown: Sequence[tuple[ModelReport, Estimate]]) -> None:
    """The chance level, if a student comes near it. Elsewhere the line would only squeeze the points together."""
    if report.chance is None or report.root is None or not report.metric.has_retention or not report.root.metric.value:
        return
    chance = report.chance.value / report.root.metric.value
    if min(estimate.low or estimate.value for _, estimate in shown) < chance + NEAR_CHANCE:
        axes.axhline(100 * chance, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        _write(axes, f"chance: {report.chance.guesser}", (1, 100 * chance), (0, 4), color=MUTED, fontsize=8)


def _write(axes: Axes, text: str, place: tuple[float, float], points: tuple[float, float], **style: Any) -> None:
    """Text some points beside a place in the data."""
    axes.annotate(text, place, xytext=points, textcoords="offset points", **style)


def history_figure(report: Report, stage: StageReport) -> str | None:
    """Loss and validation metric of one stage over its epochs; None if its history was not kept."""
    if not stage.history:
        return None
    metric = report.metric
    losses = [point.loss for point in stage.history if point.loss is not None]
    loss = f"Loss from {losses[0]:.3g} to {losses[-1]:.3g}. " if losses else ""
    values = ", ".join(measured(value, metric) for _, value in _validations(report, stage))
    teacher = f" Its teacher reaches {measured(stage.teacher_metric, metric)}." if stage.teacher_metric else ""
    return draw_svg(
        f"history-{stage.digest[:12]}",
        (3.0, 2.5),
        partial(_draw_history, report=report, stage=stage),
        title=f"Training of {stage.name}",
        description=f"{loss}{_capital(metric.display_name)} on validation, epoch by epoch: {values}.{teacher}",
    )


def _validations(report: Report, stage: StageReport) -> list[tuple[float, float]]:
    """Epoch and metric of each measurement during training."""
    name = report.metric.name
    return [
        (point.epoch, point.validation[name])
        for point in stage.history
        if point.validation and name in point.validation
    ]


def _draw_history(figure: Figure, *, report: Report, stage: StageReport) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    trained = [(point.epoch, point.loss) for point in stage.history if point.loss is not None]
    upper.plot([epoch for epoch, _ in trained], [loss for _, loss in trained], color=SECOND, linewidth=1.2)
    upper.set_title("training loss", loc="left", fontsize=8, color=MUTED)
    validated = _validations(report, stage)
    lower.plot([epoch for epoch, _ in validated], [value for _, value in validated], "o-", color=ACCENT, markersize=3.5)
    # In two lines if it says that lower is better: the figure is narrow.
    title = f"{report.metric.display_name}{_on_validation(report)}".replace(" (", "\n(")
    lower.set_title(title, loc="left", fontsize=8, color=MUTED)
    if stage.teacher_metric is not None:
        lower.axhline(stage.teacher_metric, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        edge: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "color": MUTED, "fontsize": 7.5}
        _write(lower, "its teacher", (1, stage.teacher_metric), (-2, -9), **edge)
    epochs = max(point.epoch for point in stage.history)
    lower.set_xlim(0, epochs * 1.03)
    lower.set_xlabel("epoch", labelpad=1)
    # Fractions of an epoch are of use only within the first one.
    lower.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=epochs > 1))
    lower.margins(y=0.25)
    upper.set_ylim(bottom=0)
    if report.metric.is_share:
        # The margin must not suggest that a share can exceed 1.
        lower.set_ylim(top=min(lower.get_ylim()[1], 1.02))
    for axes in (upper, lower):
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
        axes.tick_params(labelsize=8)
