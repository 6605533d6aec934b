"""The figures of the report: quality against size, and the course of each training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from distillchain_report.axes import GAP, Axis, Panel, linear_ticks, log_ticks, padded
from distillchain_report.model import Estimate, ModelReport, Report, StageReport
from distillchain_report.svg import ACCENT, INK, MUTED, SECOND, Drawing, Point, width_of
from distillchain_report.words import factor, measured, percent

NEAR_CHANCE = 0.15  # of the teacher's metric
MANY_STUDENTS = 4  # with more, names are slanted so that neighbours do not overlap
SLANT_DEGREES = 40
MANY_DECADES = 500  # on an axis that goes further, the labels of 2 and 5 would overlap
DASHED, DOTTED = "4 3", "1 2"

Shown = Sequence[tuple[ModelReport, Estimate]]


def quality_figure(report: Report) -> Markup | None:
    """What each student keeps of the root teacher's metric against how much smaller it is; None without a student.

    For a metric that is no share, the metric itself is drawn.
    """
    shown = _students(report)
    if report.root is None or not shown:
        return None
    name = report.metric.display_name
    if report.metric.is_share:
        title = f"Share of the teacher’s {name} kept, against compression"
        reference = "The teacher is the reference: 100 % at 1×."
        values = [percent(estimate.value) for _, estimate in shown]
    else:
        title = f"{name.capitalize()} against compression"
        reference = f"The teacher has {measured(report.root.metric.value, report.metric)} at 1×."
        values = [measured(estimate.value, report.metric) for _, estimate in shown]
    points = "; ".join(
        f"{model.name}: {value} at {factor(model.compression)} fewer parameters"
        for (model, _), value in zip(shown, values, strict=True)
    )
    drawing = Drawing(461, 266)
    _draw_quality(drawing, report, shown)
    return drawing.markup("quality", title=title, description=f"{reference} {points}.")


def _students(report: Report) -> list[tuple[ModelReport, Estimate]]:
    """The students that can be drawn, each with the height of its point."""
    students = [model for model in report.models if model is not report.root]
    if not report.metric.is_share:
        return [(model, model.metric) for model in students]
    return [(model, model.retention) for model in students if model.retention]


def _draw_quality(drawing: Drawing, report: Report, shown: Shown) -> None:
    assert report.root is not None
    is_share = report.metric.is_share
    scale, teacher = (100.0, 100.0) if is_share else (1.0, report.root.metric.value)
    points = [(model.compression, scale * estimate.value) for model, estimate in shown]
    intervals = [
        (scale * estimate.low, scale * estimate.high)
        if estimate.low is not None and estimate.high is not None
        else None
        for _, estimate in shown
    ]
    chance = _chance_height(report, shown)
    panel = _quality_panel(
        drawing,
        heights=[
            *(teacher, *(y for _, y in points)),
            *(end for interval in intervals for end in interval or ()),
            *([] if chance is None else [chance]),
        ],
        names=[(model.name, x) for (model, _), (x, _) in zip(shown, points, strict=True)],
        unit=" %" if is_share else "",
    )
    panel.draw_frame()
    kept = " kept" if is_share else " on validation"
    beside = (9, (panel.top + panel.bottom) / 2)
    drawing.word(beside, f"{report.metric.display_name}{kept}", colour=MUTED, anchor="middle", angle=90)
    below = ((panel.left + panel.right) / 2, drawing.height - 4)
    drawing.word(below, "times fewer parameters than the teacher (log scale)", colour=MUTED, anchor="middle")
    panel.level(teacher, dash=DASHED)
    if chance is not None and report.chance is not None:
        panel.level(chance, dash=DOTTED)
        _write(panel, f"chance: {report.chance.guesser}", (1, chance), (0, -4), size=8, colour=MUTED)
    panel.line([(1.0, teacher), *points], ACCENT, opacity=0.5)
    for interval, point in zip(intervals, points, strict=True):
        if interval is not None:
            _draw_interval(panel, point[0], interval)
        # After the lines, which end in the points.
        drawing.circle(panel.place(*point), 3, ACCENT)
    drawing.diamond(panel.place(1, teacher), 4.5, INK)
    _write(panel, "teacher", (1, teacher), (0, -8), bold=True)
    for (model, _), point in zip(shown, points, strict=True):
        offset, angle = ((3, -7), SLANT_DEGREES) if len(shown) > MANY_STUDENTS else ((7, -6), 0)
        _write(panel, model.name, point, offset, angle=angle)


def _quality_panel(
    drawing: Drawing, *, heights: Sequence[float], names: Sequence[tuple[str, float]], unit: str
) -> Panel:
    """The panel of the quality figure, with room for the names of the students beside their points."""
    slanted = len(names) > MANY_STUDENTS
    # Slanted names stand higher, so they need more room above the points.
    low, high = padded(heights, 0.3 if slanted else 0.14)
    y = Axis(low, high, linear_ticks(low, high, most=6), lambda value: f"{value:g}{unit}")
    compressions = [x for _, x in names]
    widest = max(compressions)
    # A student can be larger than its teacher.
    left, right = min(0.85, 0.85 * min(compressions)), max(widest * 1.7, 3)
    factors = (1, 2, 5) if widest < MANY_DECADES else (1,)
    x = Axis(left, right, log_ticks(left, right, factors=factors), lambda value: f"{value:,g}×", is_log=True)
    start, end = 18 + y.label_width + GAP, drawing.width - 8
    for name, compression in names:
        needed = width_of(name) * (math.cos(math.radians(SLANT_DEGREES)) if slanted else 1) + 8
        share = x.share(compression)
        # Where the panel may end at most, so that the name fits into the drawing.
        end = min(end, start + (drawing.width - needed - start) / share) if share > 0 else end
    # A name longer than half of the figure is cut rather than that the points move together.
    return Panel(drawing, start, 8, max(end, drawing.width / 2), drawing.height - 36, x, y)


def _draw_interval(panel: Panel, x: float, interval: tuple[float, float]) -> None:
    """A vertical bar with a cap at both ends."""
    ends = [panel.place(x, end) for end in interval]
    panel.drawing.line(ends, ACCENT, width=1.4)
    for across, height in ends:
        panel.drawing.line([(across - 3, height), (across + 3, height)], ACCENT, width=1.4)


def _chance_height(report: Report, shown: Shown) -> float | None:
    """The chance level, if a student comes near it. Elsewhere the line would only squeeze the points together."""
    if report.chance is None or report.root is None or not report.metric.is_share or not report.root.metric.value:
        return None
    chance = report.chance.value / report.root.metric.value
    near = min(estimate.low or estimate.value for _, estimate in shown) < chance + NEAR_CHANCE
    return 100 * chance if near else None


def _write(
    panel: Panel,
    text: str,
    values: Point,
    offset: Point,
    *,
    size: float = 9,
    colour: str = INK,
    bold: bool = False,
    angle: float = 0,
) -> None:
    """Text at an offset from a pair of values."""
    x, y = panel.place(*values)
    place = (x + offset[0], y + offset[1])
    panel.drawing.word(place, text, size=size, colour=colour, bold=bold, angle=angle)


def history_figure(report: Report, stage: StageReport) -> Markup | None:
    """Loss and validation metric of one stage over its epochs; None if its history was not kept."""
    if not stage.history:
        return None
    metric = report.metric
    losses = [point.loss for point in stage.history if point.loss is not None]
    loss = f"Loss from {losses[0]:.3g} to {losses[-1]:.3g}. " if losses else ""
    values = ", ".join(measured(value, metric) for _, value in _validations(report, stage))
    teacher = f" Its teacher reaches {measured(stage.teacher_metric, metric)}." if stage.teacher_metric else ""
    drawing = Drawing(216, 180)
    _draw_history(drawing, report, stage)
    return drawing.markup(
        f"history-{stage.digest[:12]}",
        title=f"Training of {stage.name}",
        description=f"{loss}{metric.display_name.capitalize()} on validation, epoch by epoch: {values}.{teacher}",
    )


def _validations(report: Report, stage: StageReport) -> list[tuple[float, float]]:
    """Epoch and metric of each measurement during training."""
    name = report.metric.name
    return [
        (point.epoch, point.validation[name])
        for point in stage.history
        if point.validation and name in point.validation
    ]


def _draw_history(drawing: Drawing, report: Report, stage: StageReport) -> None:
    trained = [(point.epoch, point.loss) for point in stage.history if point.loss is not None]
    validated = _validations(report, stage)
    epochs = max(point.epoch for point in stage.history)
    # Fractions of an epoch are of use only within the first one.
    ticks = linear_ticks(0, epochs * 1.03, most=5, integer=epochs > 1)
    x = Axis(0, epochs * 1.03, ticks, lambda value: f"{value:g}")
    losses = _small_axis(0, 1.05 * max((loss for _, loss in trained), default=1) or 1)
    level = stage.teacher_metric
    shown = [*(value for _, value in validated), *([] if level is None else [level])]
    low, high = padded(shown or [0, 1], 0.25)
    # The margin must not suggest that a share can exceed 1.
    values = _small_axis(low, min(high, 1.02) if report.metric.is_share else high)
    left = max(losses.label_width, values.label_width) + GAP + 1
    upper = Panel(drawing, left, 14, drawing.width - 6, 73, x, losses)
    lower = Panel(drawing, left, 93, drawing.width - 6, 152, x, values)
    upper.draw_frame(x_numbers=False)
    lower.draw_frame()
    titles = ((upper, "training loss"), (lower, f"{report.metric.display_name} on validation"))
    for panel, title in titles:
        drawing.word((left, panel.top - 5), title, size=8, colour=MUTED)
    drawing.word(((left + lower.right) / 2, drawing.height - 4), "epoch", colour=MUTED, anchor="middle")
    if trained:
        upper.line(trained, SECOND, width=1.2)
    if level is not None:
        lower.level(level, dash=DASHED)
        below = (lower.right - 2, lower.place(0, level)[1] + 9)
        drawing.word(below, "its teacher", size=7.5, colour=MUTED, anchor="end")
    if validated:
        lower.line(validated, ACCENT, width=1.6)
    for pair in validated:
        drawing.circle(lower.place(*pair), 1.8, ACCENT)


def _small_axis(low: float, high: float) -> Axis:
    return Axis(low, high, linear_ticks(low, high, most=3), lambda value: f"{value:g}")
