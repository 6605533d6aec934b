"""The section on whether the chain paid: the chain beside its controls, as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from distillchain_api.resource.evidence import Control, Outcome
from distillchain_api.wire.evidence import ControlEvidence, EvidenceDocument, StageEvidence
from distillchain_report import words
from distillchain_report.evidence.verdict import FROM_ROOT
from distillchain_report.model import Estimate, Report
from distillchain_report.svg import ACCENT, INK, MUTED, SECOND, draw_svg

CHAIN = "chain"
OUTCOME_WORDS = {Outcome.WORTH_IT: "Worth it", Outcome.NOT_WORTH_IT: "Not worth it", Outcome.UNDECIDED: "Undecided"}
TAUGHT_BY: dict[Control | None, str] = {
    None: "the stages of the chain",
    "FromRoot": "the root teacher",
    "Direct": "labels alone",
}
METHOD = (
    "Differences are the chain’s mean minus the control’s, on the same validation rows. Their intervals and p-values "
    "come from a mixed model of rows crossed with seeds; with two controls, both intervals together cover with 95 % "
    "(Bonferroni), for each stage by itself. The intervals of the means are for other rows and seeds too. GPU-hours of "
    "FromRoot leave out the root teacher’s outputs where they were stored already."
)


@dataclass(frozen=True)
class Arm:
    """The students of one recipe, as the page shows them.

    Attributes:
        control: None: the chain itself.
        gpu_hours: of one student with the stages that it needs; None: unknown.
    """

    name: str
    control: ControlEvidence | None
    metric: Estimate
    values: Sequence[float]
    steps: int
    gpu_hours: float | None

    @property
    def taught_by(self) -> str:
        """Who teaches its students."""
        return TAUGHT_BY[self.control.control if self.control else None]


def arms_of(report: Report, stage: StageEvidence) -> list[Arm]:
    """The chain, then its controls."""
    before = _hours_before(report, stage.stage)
    own = Arm(
        CHAIN,
        None,
        Estimate(value=stage.metric, low=stage.metric_low, high=stage.metric_high),
        stage.values,
        stage.steps,
        None if before is None else before[0] + stage.gpu_hours,
    )
    controls = [
        Arm(
            control.control,
            control,
            Estimate(value=control.metric, low=control.metric_low, high=control.metric_high),
            control.values,
            control.steps,
            _with_root(control, before),
        )
        for control in stage.controls
    ]
    return [own, *controls]


def _hours_before(report: Report, name: str) -> tuple[float, float] | None:
    """GPU-hours of all stages before one, and of the fine-tuned root teacher among them; None if one is unknown."""
    place = next((place for place, stage in enumerate(report.stages) if stage.name == name), None)
    if place is None:
        return None
    runs = [(stage.run, stage.model is report.root) for stage in report.stages[:place]]
    if any(run is None for run, _ in runs):
        return None
    hours = [(run.gpu_hours, is_root) for run, is_root in runs if run]
    return sum(each for each, _ in hours), sum(each for each, is_root in hours if is_root)


def _with_root(control: ControlEvidence, before: tuple[float, float] | None) -> float | None:
    # A student that learns from labels alone needs no teacher.
    if control.control == "Direct":
        return control.gpu_hours
    return None if before is None else before[1] + control.gpu_hours


def arm_cells(report: Report, arm: Arm) -> list[str]:
    """The row of one arm; see HEAD."""
    metric, control = report.metric, arm.control
    change = (
        (words.measured_change(each, metric) for each in (control.difference, control.low, control.high))
        if control
        else ()
    )
    value, *ends = change or ("",)
    return [
        arm.name,
        arm.taught_by,
        str(len(arm.values)),
        words.measured(arm.metric.value, metric),
        words.measured_range(arm.metric, metric),
        value,
        " to ".join(ends),
        words.p_value(control.p_value) if control else "",
        words.detectable(control.detectable, metric) if control else "",
        str(arm.steps),
        words.hours(arm.gpu_hours),
    ]


def title(evidence: EvidenceDocument) -> str:
    """The section's heading: a chain that was compared with Direct alone says nothing about steps in between."""
    controls = {control.control for stage in evidence.stages for control in stage.controls}
    return "Were the steps in between worth it?" if FROM_ROOT in controls else "Was teaching worth it?"


def head(report: Report) -> list[str]:
    """The titles of the table's columns."""
    return ["students", "taught by", "seeds", report.metric.display_name, "95 % interval", "chain minus it",
            "95 % interval", "p", "detectable", "steps", "GPU-hours"]  # fmt: skip


def evidence_figure(report: Report, stage: StageEvidence) -> str:
    """Each arm's mean with its interval, and its seeds as dots."""
    arms = arms_of(report, stage)
    described = "; ".join(
        f"{arm.name}: mean {words.measured(arm.metric.value, report.metric)}"
        f" ({words.measured_range(arm.metric, report.metric)}), seeds "
        f"{', '.join(words.measured(value, report.metric) for value in arm.values)}"
        for arm in arms
    )
    return draw_svg(
        f"evidence-{stage.stage}",
        (6.4, 0.9 + 0.55 * len(arms)),
        partial(_draw, report=report, arms=arms),
        title=f"{report.metric.display_name} of {stage.stage} by who taught it",
        description=f"{described}.",
    )


def _draw(figure: Figure, *, report: Report, arms: Sequence[Arm]) -> None:
    axes = figure.subplots()
    # The first arm on top.
    places = range(len(arms))[::-1]
    for place, arm in zip(places, arms, strict=True):
        colour = ACCENT if arm.control is None else SECOND
        assert arm.metric.low is not None
        assert arm.metric.high is not None
        ends = [[arm.metric.value - arm.metric.low], [arm.metric.high - arm.metric.value]]
        axes.errorbar([arm.metric.value], [place], xerr=ends, color=colour, capsize=3, linewidth=1.4)
        axes.plot([arm.metric.value], [place], "D", color=colour, markersize=6, zorder=3)
        # Below the interval, so that neither hides the other.
        axes.plot(arm.values, [place - 0.22] * len(arm.values), "o", color=INK, markersize=3.5, alpha=0.7)
    axes.axvline(arms[0].metric.value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(list(places), [arm.name for arm in arms])
    axes.set_ylim(-0.6, len(arms) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    direction = "" if report.metric.higher_is_better else " (lower is better)"
    axes.set_xlabel(f"{report.metric.display_name} on validation{direction}: mean with 95 % interval, and each seed")
