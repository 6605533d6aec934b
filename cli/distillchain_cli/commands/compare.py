"""`distillchain compare`: committed models of several chains, or of one, side by side."""

from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillchain_api.failures import StageError
from distillchain_api.graph import Plan, PlannedStage, build_plan
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.choices import amount, choice_of
from distillchain_cli.arguments.options import Verbose
from distillchain_cli.arguments.targets import FetchChain, read_target
from distillchain_cli.commands.report import check_output_file, write_report
from distillchain_cli.errors import BadInput, RunFailed, require_extra
from distillchain_cli.output.columns import WIDTH, Column, count, format_columns, rate, size
from distillchain_cli.output.output import Output
from distillchain_cli.output.printing import document_text, print_message, print_result
from distillchain_cli.stores import open_chain_store
from distillchain_operator.status.chain_status import timestamp

if TYPE_CHECKING:
    from distillchain_report.side_by_side import ComparedModel, Entrant, PairedDifference, SideBySide

app = typer.Typer()


class CompareFormat(StrEnum):
    """Formats of a comparison."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    HTML = "html"


@app.command(epilog="Example: distillchain compare a.yaml b.yaml:tiny --price-per-gpu-hour 2.5")
@takes_access
def compare(
    access: Access,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|NAME[:STAGE]",
            help="Chain files, or names on the cluster; with a stage, or else their last committed one.",
        ),
    ],
    price: Annotated[
        float | None,
        typer.Option("--price-per-gpu-hour", metavar="PRICE", parser=amount, help="Adds a column with the cost."),
    ] = None,
    output: Annotated[
        CompareFormat,
        typer.Option(
            "--output",
            "-o",
            metavar="|".join(CompareFormat),
            parser=choice_of(CompareFormat, to_file="--to"),
            help="Output format.",
        ),
    ] = CompareFormat.TABLE,
    to: Annotated[str | None, typer.Option(metavar="FILE", help="File to write to; default: stdout.")] = None,
    _verbose: Verbose = False,
) -> None:
    """Compare committed models: metric, difference from the first one on the same rows, size, speed and cost.

    The chains may use different stores. S3 credentials come from the environment, as for AWS's own tools.
    """
    require_extra("cli", "scipy", purpose="a comparison")
    if len(targets) < 2:
        raise BadInput(f"got {len(targets)} model, expected at least two, such as chain.yaml:mini chain.yaml:tiny")
    check_output_file(to, [_split(target)[0] for target in targets])
    from distillchain_report.side_by_side import compare as compare_models

    def fetch_chain(name: str) -> dict[str, Any]:
        return connect(access).fetch_chain(name)

    found = compare_models([_entrant(target, fetch_chain) for target in targets], price_per_gpu_hour=price)
    text = _written(found, output)
    if to is None:
        print_result(text.rstrip("\n"))
        return
    write_report(text, to)
    print_message(f"comparison: {to}")


def _entrant(target: str, fetch_chain: FetchChain) -> Entrant:
    from distillchain_report.build import build_report
    from distillchain_report.load import WantedStage, load_stages
    from distillchain_report.side_by_side import Entrant

    name, stage = _split(target)
    chain, _ = read_target(name, storage=None, overrides=(), fetch_chain=fetch_chain, note=print_message)
    plan = build_plan(chain)
    try:
        store = open_chain_store(chain.spec.storage)
        loaded = load_stages(store, [WantedStage(each.name, each.digest) for each in _up_to(plan, stage)])
    except StageError as error:
        raise RunFailed(str(error)) from error
    committed = [each for each in loaded if each.manifest]
    if not committed or (stage is not None and loaded[-1] is not committed[-1]):
        why = next((each.unreadable for each in reversed(loaded) if each.unreadable), None)
        none = f"stage {stage} is not committed" if stage else f"{chain.name} has no committed stage"
        raise RunFailed(f"{target}: {why or f'{none} in {store.uri}'}")
    # Stages after the last committed one say nothing about it.
    kept = loaded[: loaded.index(committed[-1]) + 1]
    if len(kept) < len(loaded):
        stage, last = kept[-1].wanted.name, loaded[-1]
        why = last.unreadable or f"{last.wanted.name} is not committed"
        print_message(f"{target}: {why}; comparing {stage}, the last committed stage")
        target = f"{target}:{stage}"
    report = build_report(
        f"{chain.metadata.namespace}/{chain.name}",
        kept,
        storage=store.uri,
        generated_at=timestamp(datetime.now(UTC)),
        version=importlib.metadata.version("distillchain"),
        metric=chain.spec.task.deciding_metric,
    )
    return Entrant(target, report, kept[-1])


def _split(target: str) -> tuple[str, str | None]:
    """The chain and the stage of an argument."""
    # A file may have a colon in its name.
    if Path(target).exists() or ":" not in target:
        return target, None
    name, _, stage = target.rpartition(":")
    return name, stage


def _up_to(plan: Plan, name: str | None) -> list[PlannedStage]:
    stages = list(plan.students)
    if name is None:
        return stages
    names = [stage.name for stage in stages]
    if name not in names:
        raise BadInput(f"{plan.chain.name}:{name}: got stage {name}, expected {' or '.join(names)}")
    return stages[: names.index(name) + 1]


def _written(found: SideBySide, form: CompareFormat) -> str:
    if form is CompareFormat.HTML:
        from distillchain_report.render import render_side_by_side

        return render_side_by_side(found, version=importlib.metadata.version("distillchain"))
    if form in (CompareFormat.JSON, CompareFormat.YAML):
        return document_text(found.to_document(), Output(form.value))
    width = None if form is CompareFormat.WIDE else WIDTH
    parts = [_models_table(found, width=width)]
    parts += [f"{model.label}: no difference: {model.not_compared}" for model in found.models if model.not_compared]
    parts += [found.device_note] if found.device_note else []
    if found.recipe:
        columns = [Column("FIELD"), *(Column(model.label) for model in found.models)]
        parts += ["", format_columns(columns, [[line.field, *line.values] for line in found.recipe], width=width)]
    else:
        parts += ["", "the recipes are the same"]
    return "\n".join([*parts, *found.missing])


def _models_table(found: SideBySide, *, width: int | None) -> str:
    """One table, or two that leave room for the names of the models."""
    quality, cost = _quality_columns(found), _cost_columns(found)
    groups = [[*quality, *cost]] if width is None else [quality, cost]
    labels = [model.label for model in found.models]
    return "\n\n".join(
        format_columns(
            [Column("MODEL"), *(Column(title, right=True) for title, _ in group)],
            [[label, *cells] for label, *cells in zip(labels, *(cells for _, cells in group), strict=True)],
            width=width,
        )
        for group in groups
    )


Columns = list[tuple[str, list[str]]]
"""The title of each column with its cells."""


def _quality_columns(found: SideBySide) -> Columns:
    from distillchain_report import words

    metric, models = found.metric, found.models
    pairs = [model.difference for model in models]

    def value_of(model: ComparedModel) -> str:
        if model.other_metric is None:
            return words.measured(model.metric.value, metric)
        return f"{model.other_metric.name} {words.measured(model.metric.value, model.other_metric)}"

    def range_of(pair: PairedDifference) -> str:
        return f"{words.measured_change(pair.low, metric)}..{words.measured_change(pair.high, metric)}"

    return [
        (metric.name, [value_of(model) for model in models]),
        (
            "95%",
            [words.measured_range(each.metric, each.other_metric or metric).replace("–", "..") for each in models],
        ),
        ("DIFFERENCE", [words.measured_change(pair.value, metric) if pair else "" for pair in pairs]),
        ("95%", [range_of(pair) if pair else "" for pair in pairs]),
        ("P", [words.p_value(pair.p_value) if pair else "" for pair in pairs]),
    ]


def _cost_columns(found: SideBySide) -> Columns:
    from distillchain_report import words

    models = found.models
    latencies = [model.latency_p50_ms for model in models]
    costs = [model.cost for model in models if model.cost is not None]
    return [
        ("PARAMETERS", [count(model.parameters) for model in models]),
        ("SIZE", [size(model.size_bytes) for model in models]),
        ("EXAMPLES/S", [rate(model.examples_per_second) for model in models]),
        ("LATENCY", ["" if latency is None else words.milliseconds(latency) for latency in latencies]),
        ("HOURS", [f"{model.hours:.2f}" for model in models]),
        ("GPU-HOURS", [f"{model.gpu_hours:.2f}" for model in models]),
        *([("COST", [f"{cost:.2f}" for cost in costs])] if costs else []),
    ]
