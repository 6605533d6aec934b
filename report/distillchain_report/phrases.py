"""What HTML and Markdown both say about stages: notes, recipes, environments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distillchain_api.base import Document
from distillchain_api.resource.distillation import Distillation
from distillchain_api.resource.training import Training
from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_report import words
from distillchain_report.model import Report, Run, StageReport

# Short names of fields; any other field is written as its own words: `labelSmoothing`: "label smoothing".
FIELD_NAMES = {"batchSize": "batch", "learningRate": "rate", "warmupRatio": "warm-up", "scheduler": "schedule"}
ALWAYS_SHOWN = {"epochs", "batchSize", "learningRate", "scheduler", "seed", "temperature", "alpha"}


def run_note(stage: StageReport) -> str:
    """Which part of a stage's work had been done before, and which epoch was chosen."""
    run = stage.run
    if run is None:
        return ""
    notes = {
        f"reused, trained by {run.chain}": run.reused,
        "resumed": run.resumed,
        "teacher logits reused": run.logits_reused,
    }
    chosen = epoch_words(run.selected) if run.selected else ""
    return "; ".join(filter(None, [*(note for note, holds in notes.items() if holds), chosen]))


def teachers_words(report: Report, stage: StageReport) -> str:
    """`mini`; with several teachers `mini (67 %, 0.912) and teacher (33 %, 0.931)`, with each metric on validation."""
    if stage.run is None or not stage.run.teacher:
        return "the labels"
    others = stage.run.further_teachers
    if not others:
        return stage.teacher_name
    own_share = 1 - sum(other.share for other in others)
    teachers = [(stage.teacher_name, own_share, stage.teacher_metric)]
    teachers += [(other.name, other.share, other.metric) for other in others]
    return " and ".join(
        f"{name} ({words.percent(share, 0)}, {words.measured(metric, report.metric)})"
        for name, share, metric in teachers
    )


def epoch_words(selected: SelectedEpoch) -> str:
    """`epoch 3 of 5 chosen on validation`."""
    return f"epoch {selected.epoch} of {selected.trained_epochs} chosen on validation"


def selection_words(report: Report) -> str:
    """What a reader must know of metrics on validation if validation chose an epoch; or nothing."""
    chosen = [stage.name for stage in report.stages if stage.run and stage.run.selected]
    if not chosen:
        return ""
    test = "test had no part in it" if "test" in report.rows else "there is no test split, which would be unaffected"
    return (
        f"Validation chose the epoch of {stage_names(report, chosen)}, so metrics on validation are slightly too good; "
        f"{test}."
    )


def failure_words(stage: StageReport | None) -> str:
    """`Failed: GateNotMet`, or nothing."""
    return ": ".join(filter(None, ("Failed", stage.failure_class))) if stage and stage.phase == "Failed" else ""


def totals_words(report: Report) -> str:
    """Time of the chain, and the part of it that was reused."""
    totals = report.totals
    passes = f", of which {words.hours(totals.pass_gpu_hours)} for teacher passes" if totals.pass_gpu_hours else ""
    return (
        f"{words.duration(totals.elapsed_s)} in total, {words.hours(totals.gpu_hours)} on GPUs{passes}; "
        f"{totals.reused} of {totals.committed} committed stages reused, which is "
        f"{words.percent(totals.reused_share, 0)} of the time."
    )


def chance_words(report: Report) -> str:
    """The chance level, or nothing."""
    if report.chance is None:
        return ""
    value = words.measured(report.chance.value, report.metric)
    return f"Chance level of {report.metric.display_name}: {value} ({report.chance.guesser})."


def stage_names(report: Report, names: list[str]) -> str:
    """Names of stages in a row; `all stages` for more than one that are all the committed ones."""
    committed = [stage.name for stage in report.stages if stage.run]
    return "all stages" if names == committed and len(names) > 1 else ", ".join(names)


def environments(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each distinct environment: the stages that ran in it, and its entries."""
    found: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for stage in report.stages:
        if stage.run:
            found.setdefault(tuple(sorted(stage.run.environment.items())), []).append(stage.name)
    return [("All stages" if len(found) == 1 else ", ".join(names), list(items)) for items, names in found.items()]


def latency_note(report: Report) -> str:
    """On what the latencies were measured; nothing if there are none."""
    if not any(model.latency_p50_ms is not None for model in report.models):
        return ""
    # A chain may have run on several kinds of nodes, and latencies on them are not comparable.
    devices = {stage.run.environment.get("device") for stage in report.stages if stage.run}
    device = devices.pop() if len(devices) == 1 else None
    return f"Latency: one row at batch size 1 on {device or 'the device of each stage (see Environment)'}."


def measured_exports(report: Report) -> str:
    """Which exports were measured on a part of validation, and on how much; or nothing."""
    stages: dict[int, list[str]] = {}
    for stage in report.stages:
        if stage.exports and (rows := stage.exports[0].rows) is not None:
            stages.setdefault(rows, []).append(stage.name)
    return " ".join(
        f"Exports of {', '.join(names)} were measured on {rows:,} of {report.rows['validation']:,} rows of validation."
        for rows, names in stages.items()
    )


def root_source(report: Report) -> str | None:
    """Where the root teacher came from."""
    first = report.stages[0].run
    if first is None:
        return None
    return f"{first.teacher} ({first.teacher_revision})" if first.teacher else first.start


def recipe_parts(stage: StageReport) -> list[str]:
    """How a stage was trained: the main fields, and any other that differs from its default."""
    if stage.run is None:
        return []
    recipe = stage.run.recipe
    return [
        *_fields(recipe.get("training", {}), Training),
        *_fields(recipe.get("distillation", {}), Distillation),
        *_lora(stage.run),
    ]


def _lora(run: Run) -> list[str]:
    lora = run.recipe.get("student", {}).get("lora")
    if lora is None:
        return []
    trained = "" if run.trained_parameters is None else f" ({run.trained_parameters:,} parameters trained)"
    return [f"LoRA {' '.join(f'{_as_words(name)} {_value(value)}' for name, value in lora.items())}{trained}"]


def _fields(values: Mapping[str, Any], kind: type[Document]) -> list[str]:
    order = [field.alias or name for name, field in kind.model_fields.items()]
    # The defaults of this release; a field of another one is unknown here and always shown.
    defaults = kind().to_document()
    shown = [name for name in values if name in ALWAYS_SHOWN or values[name] != defaults.get(name)]
    # In the order of the spec; fields of another release come last.
    shown.sort(key=lambda name: order.index(name) if name in order else len(order))
    return [f"{FIELD_NAMES.get(name) or _as_words(name)} {_value(values[name])}" for name in shown]


def _value(value: Any) -> str:
    """A value of a recipe in one line: `HiddenMSE (weight 0.5)` for an object that says which kind it is."""
    if isinstance(value, list):
        return " and ".join(_value(item) for item in value)
    if not isinstance(value, Mapping):
        return str(value)
    kind = value.get("objective")
    fields = " ".join(f"{_as_words(name)} {_value(item)}" for name, item in value.items() if name != "objective")
    return f"{kind} ({fields})" if kind else fields


def _as_words(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda letter: f" {letter[0].lower()}", name)


def common_recipe(report: Report) -> list[str]:
    """The parts that all stages' recipes share; empty for a single stage."""
    recipes = [recipe_parts(stage) for stage in report.stages if stage.run]
    # Of a single stage all parts would be common, and its own line would be empty.
    return [part for part in recipes[0] if all(part in other for other in recipes)] if len(recipes) > 1 else []


def own_recipe(report: Report, stage: StageReport) -> str:
    """The parts of a stage's recipe that not all stages share."""
    common = common_recipe(report)
    return ", ".join(part for part in recipe_parts(stage) if part not in common)
