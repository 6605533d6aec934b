"""The report as HTML, Markdown or JSON. Text from the store never becomes markup: autoescape is on."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distillchain_api.wire.evidence import StageEvidence
from distillchain_report import evidence_section, figures, phrases, words
from distillchain_report.markdown import render_markdown
from distillchain_report.model import Report
from distillchain_report.section import Section
from distillchain_report.sections import section_of
from distillchain_report.side_by_side import SideBySide
from distillchain_report.verdict import badge

LARGEST_DOT_PX = 56
SMALLEST_DOT_PX = 4


class Format(StrEnum):
    """How a report is written."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


def render(report: Report, form: Format) -> str:
    """The report as text."""
    if form is Format.JSON:
        return json.dumps(report.to_document(), indent=2, ensure_ascii=False) + "\n"
    return render_html(report) if form is Format.HTML else render_markdown(report)


def render_html(report: Report) -> str:
    """One file that needs no other file, no script and no network."""
    environment = _environment()
    section = section_of(report.task or {})
    curves = [(stage, figures.history_figure(report, stage)) for stage in report.stages]
    return environment.get_template("report.html").render(
        report=report,
        style=_style(),
        badge=badge(report),
        quality=_markup(figures.quality_figure(report)),
        curves=[(stage, _markup(curve)) for stage, curve in curves if curve],
        section=_section_html(section, report, environment),
        methods=section.methods,
        dots=dot_sizes(report),
        warnings=[(phrases.stage_names(report, names), text) for names, text in report.warnings],
        environments=phrases.environments(report),
        notes={stage.name: phrases.run_note(stage) for stage in report.stages},
        root_source=phrases.root_source(report),
        common_recipe=", ".join(phrases.common_recipe(report)),
        recipes={stage.name: phrases.own_recipe(report, stage) for stage in report.stages},
        chance=phrases.chance_words(report),
        selection=phrases.selection_words(report),
        teachers={stage.name: phrases.teachers_words(report, stage) for stage in report.stages},
        latency_note=phrases.latency_note(report),
        totals=phrases.totals_words(report),
        exported=any(stage.exports for stage in report.stages),
        measured_exports=phrases.measured_exports(report),
        evidence=_evidence(report),
        evidence_words=evidence_section,
    )


def _evidence(report: Report) -> list[tuple[StageEvidence, Markup | None, list[list[str]]]]:
    """Each stage that was judged, the last one first, with its plot and the rows of its table."""
    judged = report.evidence.stages[::-1] if report.evidence else []
    return [
        (
            stage,
            _markup(evidence_section.evidence_figure(report, stage)),
            [evidence_section.arm_cells(report, arm) for arm in evidence_section.arms_of(report, stage)],
        )
        for stage in judged
    ]


def render_side_by_side(comparison: SideBySide, *, version: str) -> str:
    """One HTML file that needs no other file, no script and no network."""
    return (
        _environment()
        .get_template("side_by_side.html")
        .render(
            comparison=comparison,
            metric=comparison.metric.display_name,
            version=version,
            style=_style(),
        )
    )


def _style() -> Markup:
    path = resources.files("distillchain_report") / "templates" / "report.css"
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704 - ours


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distillchain_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        words.share, words.measured, words.percent, words.share_range, words.measured_range, words.percent_range,
        words.p_value, words.measured_change, words.count, words.size, words.factor, words.duration, words.hours,
        words.rate, words.milliseconds, words.short, words.short_revisions, words.plural, phrases.failure_words,
    )  # fmt: skip
    environment.filters |= {each.__name__: each for each in filters}
    return environment


def _section_html(section: Section[Any], report: Report, environment: Environment) -> Markup | None:
    """The HTML of a section; None if it has nothing to show."""
    if report.details is None or section.template is None:
        return None
    template = environment.from_string(section.template.read_text(encoding="utf-8"))
    values = section.template_values(report)
    # The template's own output, in which autoescape has escaped every value.
    return Markup(template.render(report=report, details=report.details, **values))  # noqa: S704


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704 - matplotlib's, whose text it has escaped


def dot_sizes(report: Report) -> dict[str, float]:
    """Diameter in pixels of each model's dot; its area is proportional to the parameters."""
    largest = max((model.parameters for model in report.models), default=1)
    return {
        # A student 1,000 times smaller would be a dot of 2 pixels, which nobody sees.
        model.name: max(SMALLEST_DOT_PX, round(LARGEST_DOT_PX * math.sqrt(model.parameters / largest), 1))
        for model in report.models
    }
