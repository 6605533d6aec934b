"""The text of a model card: how to load the model, what it reaches, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from distillchain_api.metrics import format_for_status, metric_named
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_api.tasks import metrics_of
from distillchain_api.wire.manifest import Manifest, ModelFacts
from distillchain_report.markdown_text import plain, table
from distillchain_report.model import Estimate
from distillchain_trainer.model_card.facts import CardFacts
from distillchain_trainer.model_card.metadata import PIPELINES, build_metadata

UNKNOWN = "unknown"


def render_card(facts: CardFacts) -> str:
    """The card: front matter and Markdown."""
    parts = [_title(facts), _use(facts), _results(facts), _lineage(facts), _data(facts.manifest)]
    parts += [_recipe(facts.manifest), _warnings(facts.manifest), _licenses(facts)]
    body = "\n\n".join(filter(None, parts))
    return f"---\n{build_metadata(facts)}\n---\n\n{body}\n"


def _title(facts: CardFacts) -> str:
    manifest = facts.manifest
    role = "a student" if manifest.teacher else "the fine-tuned teacher"
    lines = [
        f"# {plain(manifest.chain)}, stage {plain(manifest.stage)}",
        f"{plain(manifest.stage)} is {role} of the distillation chain {plain(manifest.chain)}. It has "
        f"{manifest.student.parameters:,} parameters in {manifest.student.size_bytes:,} bytes. distillchain "
        f"{manifest.environment.get('distillchain', '')} trained it and committed it at {manifest.committed_at}.",
    ]
    lora = manifest.recipe.get("student", {}).get("lora")
    if lora is not None:
        trained = f"{manifest.run.trained_parameters or 0:,}"
        lines.append(f"LoRA of rank {lora['rank']} trained {trained} parameters, which are merged into these weights.")
    if manifest.student.doubt:
        lines.append(f"**Doubtful:** {plain(manifest.student.doubt)}.")
    return "\n\n".join(lines)


def _use(facts: CardFacts) -> str:
    task = facts.manifest.recipe["task"]
    pipeline = PIPELINES.get(task["type"])
    if pipeline is None:
        return ""
    code = ["from transformers import pipeline"]
    if facts.code_file:
        code = ["import sys", *code, "", "folder = '.'  # of this file", "sys.path.insert(0, folder)"]
        module = facts.code_file.removesuffix(".py")
        code += [f"from {module} import register", "", f"register()  # {facts.code_file} is beside this file"]
    else:
        code += ["", "folder = '.'  # of this file"]
    truncation = "" if pipeline == "text-generation" else ", truncation=True"
    code += [f'model = pipeline("{pipeline}", model=folder)', f'print(model("your text"{truncation}))']
    limit = f"Texts are cut to {task.get('maxLength', 128)} tokens (`model_max_length`), as in the training."
    return "## Use\n\n```python\n" + "\n".join(code) + f"\n```\n\n{limit}"


def _results(facts: CardFacts) -> str:
    teacher, task = facts.manifest.teacher, facts.manifest.recipe["task"]
    rows = []
    for split, estimates in facts.estimates.items():
        taught = (teacher.metrics.validation if split == "validation" else teacher.metrics.test) if teacher else None
        for name, estimate in estimates.items():
            theirs = _written(task, name, taught[name]) if taught and name in taught else ""
            rows.append([split, name, _written(task, name, estimate.value), _interval(task, name, estimate), theirs])
    head = ["split", "metric", "value", "95 % interval", "its teacher"]
    speed = facts.manifest.student.examples_per_second
    device = plain(facts.manifest.environment.get("device", "an unknown device"))
    measured = f"\n\nIt was measured at {speed:,.0f} examples per second on {device}." if speed else ""
    return f"## Results\n\n{table(head, rows)}{measured}{_selection(facts.manifest)}"


def _selection(manifest: Manifest) -> str:
    """What a reader must know of the results if an epoch was chosen."""
    selected = manifest.run.selected
    if selected is None:
        return ""
    return (
        f"\n\nThe weights are those of epoch {selected.epoch} of {selected.trained_epochs}, the best on validation. So "
        "metrics on validation are slightly too good; test had no part in the choice."
    )


def _interval(task: Mapping[str, Any], name: str, estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{_written(task, name, estimate.low)} to {_written(task, name, estimate.high)}"


def _written(task: Mapping[str, Any], name: str, value: float) -> str:
    """A value of a metric. Only a share has four decimals: an error may be a millionth, and a billion."""
    return format_for_status(value, metric_named(name, metrics_of(task)))


def _lineage(facts: CardFacts) -> str:
    stages = [*facts.ancestors, facts.manifest]
    rows = []
    root = stages[0].teacher
    if root is not None:
        rows.append([TEACHER_STAGE, root.digest or "", *_model(root), ""])
    rows += [[stage.stage, stage.digest, *_model(stage.student), stage.start] for stage in stages]
    head = ["model", "stage digest", "weights", "parameters", "start"]
    note = "Each model taught the next one. The first one is " + (
        f"`{root.source}`." if root else f"`{stages[0].start}`, fine-tuned."
    )
    return f"## Lineage\n\n{table(head, rows)}\n\n{note}{_further_teachers(facts.manifest)}"


def _further_teachers(manifest: Manifest) -> str:
    """The teachers beside the stage before, if there are some."""
    if not manifest.further_teachers:
        return ""
    task = manifest.recipe["task"]
    rows = [
        [other.name, f"{other.share:.0%}", *_model(other.facts), _validation(task, other.facts)]
        for other in manifest.further_teachers
    ]
    head = ["further teacher", "share", "weights", "parameters", "on validation"]
    intro = f"{plain(manifest.stage)} learned from the mean of several teachers. Beside the model before it:"
    return f"\n\n{intro}\n\n{table(head, rows)}"


def _validation(task: Mapping[str, Any], model: ModelFacts) -> str:
    metric = task.get("metric", "")
    value = model.metrics.validation.get(metric)
    return "" if value is None else f"{metric} {_written(task, metric, value)}"


def _model(model: ModelFacts) -> list[str]:
    return [model.revision, f"{model.parameters:,}"]


def _data(manifest: Manifest) -> str:
    uri = manifest.recipe["task"]["dataset"]["uri"]
    rows = [[name, f"{split.rows:,}", split.sha256] for name, split in manifest.data.items()]
    intro = f"{plain(uri)}, revision {plain(manifest.data_revision)}:"
    transfer = manifest.recipe["task"].get("transfer")
    if transfer is not None:
        found = manifest.data.get("transfer")
        revision = f", revision {plain(found.revision)}" if found and found.revision else ""
        intro = f"{intro.removesuffix(':')}. Unlabelled text: {plain(transfer['uri'])}{revision}."
    return f"## Data\n\n{intro}\n\n{table(['split', 'rows', 'sha256 of texts and labels'], rows)}"


def _recipe(manifest: Manifest) -> str:
    text: str = yaml.safe_dump(manifest.recipe, sort_keys=False, allow_unicode=True)
    # Indented and not fenced: no label or column name can end the block.
    block = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    versions = ", ".join(f"{name} {version}" for name, version in manifest.environment.items())
    return f"## Recipe\n\n{block}\n\nEnvironment: {plain(versions)}."


def _warnings(manifest: Manifest) -> str:
    if not manifest.warnings:
        return ""
    return "## Warnings\n\n" + "\n".join(f"- {plain(warning)}" for warning in manifest.warnings)


def _licenses(facts: CardFacts) -> str:
    manifest = facts.manifest
    rows = []
    if manifest.teacher is not None:
        rows.append(["root teacher", facts.root_license or UNKNOWN])
    if manifest.pretrained:
        rows.append(["start of the weights", manifest.licenses.get("start", UNKNOWN)])
    rows.append(["data", UNKNOWN])
    note = "As the model cards beside those checkpoints state them. Read the terms of the data at its source."
    return f"## Licenses\n\n{table(['of', 'license'], rows)}\n\n{note}"
