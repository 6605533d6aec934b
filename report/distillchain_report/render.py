"""The report as a page, as Markdown and as JSON. What comes from the store is text, never markup: autoescape is on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from enum import StrEnum
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distillchain_report import figures, words
from distillchain_report.model import ClassReport, Report, StageReport

MATRIX_CLASSES = 8  # a larger matrix is no longer read at a glance: then the weakest classes are listed
LISTED_CLASSES = 20
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
    """One file that needs no other, no script and no network."""
    environment = Environment(
        loader=PackageLoader("distillchain_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        each.__name__: each
        for each in (
            words.share, words.percent, words.share_range, words.percent_range, words.p_value, words.count, words.size,
            words.factor, words.duration, words.hours, words.rate, words.short, words.short_revisions, text_words,
            failure_words,
        )
    }  # fmt: skip
    style = (resources.files("distillchain_report") / "templates" / "report.css").read_text(encoding="utf-8")
    curves = [(stage, figures.history_figure(report, stage)) for stage in report.stages]
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),  # noqa: S704 - ours
        metric=words.METRIC_NAMES[report.metric],
        retention=_markup(figures.retention_figure(report)),
        curves=[(stage, _markup(curve)) for stage, curve in curves if curve],
        dots=dot_sizes(report),
        matrix=confusion_cells(report),
        classes=weakest_classes(report),
        environments=environments(report),
        notes={stage.name: run_note(stage) for stage in report.stages},
        root_source=root_source(report),
        common_recipe=", ".join(common_recipe(report)),
        recipes={stage.name: own_recipe(report, stage) for stage in report.stages},
    )


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704 - matplotlib's, whose text it has escaped


def dot_sizes(report: Report) -> dict[str, float]:
    """Diameter in pixels of each model's dot: its area is as its parameters."""
    largest = max((model.parameters for model in report.models), default=1)
    return {
        model.name: max(SMALLEST_DOT_PX, round(LARGEST_DOT_PX * math.sqrt(model.parameters / largest), 1))
        for model in report.models
    }


def confusion_cells(report: Report) -> list[list[tuple[int, float]]] | None:
    """Each cell's rows, and their share of the true class; None where a list of classes says it better."""
    if report.confusion is None or len(report.labels) > MATRIX_CLASSES:
        return None
    return [[(cell, cell / max(sum(row), 1)) for cell in row] for row in report.confusion]


def weakest_classes(report: Report) -> list[ClassReport]:
    """All classes when they are few, else those of the least F1."""
    if len(report.classes) <= LISTED_CLASSES:
        return report.classes
    return sorted(report.classes, key=lambda found: found.f1.value)[:LISTED_CLASSES]


def environments(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Stages that ran in the same environment together: their names, and what it was."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in report.stages:
        if stage.run:
            found.setdefault(tuple(sorted(stage.run.environment.items())), []).append(stage.name)
    return [("All stages" if len(found) == 1 else ", ".join(names), list(items)) for items, names in found.items()]


def root_source(report: Report) -> str | None:
    """Where the root teacher came from."""
    first = report.stages[0].run
    if first is None:
        return None
    return f"{first.teacher} ({first.teacher_revision})" if first.teacher else first.start


def recipe_parts(stage: StageReport) -> list[str]:
    """How a stage was trained, thing by thing; what has no effect is left out."""
    if stage.run is None:
        return []
    training = stage.run.recipe.get("training", {})
    distillation = stage.run.recipe.get("distillation", {})
    names = {
        "epochs": "epochs", "batchSize": "batch", "gradientAccumulation": "accumulation", "learningRate": "rate",
        "weightDecay": "weight decay", "warmupRatio": "warmup", "scheduler": "schedule", "precision": "precision",
        "seed": "seed",
    }  # fmt: skip
    plain = {"gradientAccumulation": 1, "weightDecay": 0, "warmupRatio": 0, "precision": "float32"}
    parts = [f"{names[key]} {training[key]}" for key in names if key in training and training[key] != plain.get(key)]
    return [*parts, *(f"{name} {distillation[name]}" for name in ("temperature", "alpha") if name in distillation)]


def common_recipe(report: Report) -> list[str]:
    """What every stage's recipe holds; nothing when there is only one."""
    recipes = [recipe_parts(stage) for stage in report.stages if stage.run]
    return [part for part in recipes[0] if all(part in other for other in recipes)] if len(recipes) > 1 else []


def own_recipe(report: Report, stage: StageReport) -> str:
    """What of a stage's recipe is not every stage's."""
    common = common_recipe(report)
    return ", ".join(part for part in recipe_parts(stage) if part not in common)


def text_words(text: list[str] | None) -> str:
    """The texts of a row."""
    return "(its text was not kept)" if text is None else " · ".join(text)


def render_markdown(report: Report) -> str:
    """The same in Markdown, without the figures: for a merge request or a wiki."""
    metric = words.METRIC_NAMES[report.metric]
    parts = [
        f"# Distillation report: {_plain(report.chain)}",
        f"**{_plain(report.verdict)}**",
        "## Steps",
        _table(
            ["model", "note", "parameters", "size", metric, "95 % interval", "test", f"{metric} kept",
             "95 % interval", "smaller", "examples/s"],
            _model_rows(report),
        ),
        *_markdown_comparison(report),
        *_markdown_classes(report),
        *_markdown_differences(report),
        "## Time",
        _table(
            ["stage", "wall", "in models", "GPU-hours", "steps", "trained examples/s", "note"],
            [
                [stage.name, words.duration(run.elapsed_s), words.duration(run.model_s), words.hours(run.gpu_hours),
                 str(run.steps), words.rate(run.examples_per_second), run_note(stage)]
                for stage in report.stages if (run := stage.run)
            ],
        ),
        _plain(totals_words(report)),
        "## Lineage",
        _table(
            ["stage", "digest", "taught by", "start", "weights", "recipe", "trained by", "committed"],
            [
                [stage.name, words.short(stage.digest), stage.teacher_name if run.teacher else "the labels",
                 words.short_revisions(run.start), words.short(run.weights), ", ".join(recipe_parts(stage)), run.chain,
                 run.committed_at]
                for stage in report.stages if (run := stage.run)
            ],
        ),
        "## Environment",
        *[
            f"- {_plain(names)}: {_plain('; '.join(f'{key} {value}' for key, value in items))}"
            for names, items in environments(report)
        ],
        *(["## Missing", *[f"- {_plain(sentence)}" for sentence in report.missing]] if report.missing else []),
        _plain(f"Made {report.generated_at} by distillchain {report.distillchain} from {report.storage}."),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part).replace("\n\n- ", "\n- ") + "\n"


def run_note(stage: StageReport) -> str:
    """What of a stage was not done anew."""
    run = stage.run
    if run is None:
        return ""
    notes = {
        f"re-used, trained by {run.chain}": run.reused,
        "resumed": run.resumed,
        "teacher logits re-used": run.logits_reused,
    }
    return "; ".join(note for note, holds in notes.items() if holds)


def failure_words(stage: StageReport | None) -> str:
    """`Failed: GateNotMet`, or nothing."""
    return ": ".join(filter(None, ("Failed", stage.failure_class))) if stage and stage.standing == "Failed" else ""


def totals_words(report: Report) -> str:
    """Time of the chain and what of it was re-used."""
    totals = report.totals
    return (
        f"In all {words.duration(totals.elapsed_s)} and {words.hours(totals.gpu_hours)} of GPU; "
        f"{totals.reused} of {totals.committed} committed stages re-used, "
        f"{words.percent(totals.reused_share, 0)} of the time."
    )


def _model_rows(report: Report) -> list[list[str]]:
    rows = []
    failed = {id(stage.model): stage for stage in report.stages if stage.model and stage.standing == "Failed"}
    for model in report.models:
        kept = model.retention
        notes = ["new weights" if model.pretrained is False else "", failure_words(failed.get(id(model)))]
        rows.append([
            model.name, "; ".join(filter(None, notes)), words.count(model.parameters),
            words.size(model.size_bytes), words.share(model.metric.value), words.share_range(model.metric),
            words.share(model.test.value if model.test else None), words.percent(kept.value if kept else None),
            words.percent_range(kept), words.factor(model.compression), words.rate(model.examples_per_second),
        ])  # fmt: skip
    waiting = [stage for stage in report.stages if stage.model is None]
    return rows + [[stage.name, stage.standing, *[""] * 9] for stage in waiting]


def _markdown_comparison(report: Report) -> list[str]:
    pairs = [("teacher → last student", report.against_root)]
    pairs += [(f"{stage.teacher_name} → {stage.name}", stage.against_teacher) for stage in report.stages]
    rows = [
        [name, str(pair.only_teacher_right), str(pair.only_student_right), str(pair.both_right), str(pair.both_wrong),
         words.p_value(pair.p_value)]
        for name, pair in pairs if pair
    ]  # fmt: skip
    if not rows:
        return []
    head = ["pair", "only teacher right", "only student right", "both right", "both wrong", "McNemar exact p"]
    return ["## Paired comparison on validation", _table(head, rows)]


def _markdown_classes(report: Report) -> list[str]:
    rows = [
        [found.label, str(found.rows), words.share(found.recall.value if found.recall else None),
         words.share_range(found.recall), words.share(found.precision.value if found.precision else None),
         words.share_range(found.precision), words.share(found.f1.value), words.share_range(found.f1)]
        for found in weakest_classes(report)
    ]  # fmt: skip
    head = ["class", "rows", "recall", "95 % interval", "precision", "95 % interval", "F1", "95 % interval"]
    return ["## Classes of the last student", _table(head, rows)] if rows else []


def _markdown_differences(report: Report) -> list[str]:
    rows = [
        [str(found.row), text_words(found.text), found.label,
         f"{found.teacher} {words.percent(found.teacher_probability, 0)}",
         f"{found.student} {words.percent(found.student_probability, 0)}"]
        for found in report.differences
    ]  # fmt: skip
    head = ["row", "text", "label", "teacher", "student"]
    return ["## Where teacher and student differ most", _table(head, rows)] if rows else []


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[_plain(cell) or " " for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no new line."""
    return re.sub(r"([\\`*_\[\]<>|#&~!])", r"\\\1", " ".join(text.split()))
