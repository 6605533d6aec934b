"""`distillchain advise`: which step of a chain to add or drop next, from the committed stages of its store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from distillchain_api.failures import StageError
from distillchain_api.graph import build_plan
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.choices import amount
from distillchain_cli.arguments.options import Overrides, Storage, Target, Verbose
from distillchain_cli.arguments.targets import read_target
from distillchain_cli.errors import RunFailed, require_extra
from distillchain_cli.output.columns import WIDTH, Column, format_columns
from distillchain_cli.output.output import Output, OutputFormat
from distillchain_cli.output.printing import is_document, print_document, print_message, print_result
from distillchain_cli.stores import open_chain_store

if TYPE_CHECKING:
    from distillchain_report.advice_model import Advice
    from distillchain_report.model import Estimate, MetricFacts

app = typer.Typer()

OUTCOME_WORDS = {"Better": "better", "AsGood": "no better", "Worse": "worse", "Undecided": "undecided"}
"""What the chain is beside another route."""


@app.command(epilog="Example: distillchain advise chain.yaml")
@takes_access
def advise(
    access: Access,
    target: Target,
    smallest_gain: Annotated[
        float | None,
        typer.Option(
            metavar="GAIN",
            parser=amount,
            help="The smallest gain that is worth a step, such as 0.005 for half a point, the default of a share.",
        ),
    ] = None,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Say which step of a chain to add or drop next, and the measurements behind it. Trains and changes nothing.

    It reads all committed stages of the store with the same root teacher and task, also those of other chains.
    """
    require_extra("cli", "scipy", purpose="advice")
    chain, _ = read_target(
        target,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: connect(access).fetch_chain(name),
        note=print_message,
    )
    from distillchain_report.advise import NothingCommitted, advise_on

    try:
        store = open_chain_store(chain.spec.storage)
        advice = advise_on(store, build_plan(chain), smallest_gain=smallest_gain)
    except StageError as error:
        raise RunFailed(str(error)) from error
    except NothingCommitted as error:
        raise RunFailed(f"{target}: {error}") from error
    if is_document(output):
        print_document(advice.to_document(), output)
    else:
        print_result(_written(advice, width=None if output == Output.WIDE else WIDTH))


def _written(advice: Advice, *, width: int | None) -> str:
    parts = [advice.sentence, *(f"next: {run}" for run in advice.runs), "", _steps_table(advice, width=width)]
    if advice.other_routes:
        parts += ["", _routes_table(advice, width=width)]
    return "\n".join([*parts, *(f"not used: {sentence}" for sentence in advice.missing)])


def _steps_table(advice: Advice, *, width: int | None) -> str:
    from distillchain_report import words

    metric = advice.metric
    titles = (metric.name, "LOSS", "95%", "KEPT", "SMALLER", "HOURS", "GPU-HOURS")
    columns = [Column("STEP"), *(Column(title, right=True) for title in titles)]
    rows = [
        [
            f"{step.teacher} -> {step.student}",
            words.measured(step.student_metric, metric),
            *_change(step.loss, metric),
            words.percent(step.retention) if step.retention is not None else "",
            words.factor(step.compression) if step.compression is not None else "",
            f"{step.hours:.2f}",
            f"{step.gpu_hours:.2f}",
        ]
        for step in advice.steps
    ]
    return format_columns(columns, rows, width=width)


def _routes_table(advice: Advice, *, width: int | None) -> str:
    from distillchain_report import words
    from distillchain_report.advice_words import route_words

    metric = advice.metric
    # The names of a route's stages need the room; a wide table has the hours too.
    hours = ("HOURS", "GPU-HOURS") if width is None else ()
    titles = (metric.name, "SEEDS", "CHAIN MINUS IT", "95%", "DETECTABLE", *hours)
    columns = [Column("OTHER ROUTE"), *(Column(title, right=True) for title in titles), Column("CHAIN IS")]
    rows = [
        [
            route_words(route.stages),
            words.measured(route.metric, metric),
            f"{route.seeds} of {route.seeds_of_chain}" if route.seeds != route.seeds_of_chain else str(route.seeds),
            *_change(route.difference, metric),
            words.detectable(route.detectable, metric) if route.detectable is not None else "",
            *([f"{route.hours:.2f}", f"{route.gpu_hours:.2f}"] if hours else []),
            OUTCOME_WORDS[route.outcome],
        ]
        for route in advice.other_routes
    ]
    return format_columns(columns, rows, width=width)


def _change(found: Estimate | None, metric: MetricFacts) -> list[str]:
    """A difference and its interval."""
    from distillchain_report import words

    if found is None:
        return ["", ""]
    ends = "" if found.low is None or found.high is None else (
        f"{words.measured_change(found.low, metric)}..{words.measured_change(found.high, metric)}"
    )  # fmt: skip
    return [words.measured_change(found.value, metric), ends]
