"""`distillchain plan`: what a run would do."""

from __future__ import annotations

import typer

from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.chain_files import plan_of
from distillchain_cli.arguments.filename_option import takes_filename
from distillchain_cli.arguments.options import Overrides, Storage, Target, Verbose
from distillchain_cli.arguments.targets import read_target
from distillchain_cli.output.columns import WIDTH
from distillchain_cli.output.output import Output, OutputFormat
from distillchain_cli.output.printing import is_document, print_document, print_message, print_result

app = typer.Typer()


@app.command(epilog="Example: distillchain plan chain.yaml -o json")
@takes_access
@takes_filename
def plan(
    access: Access,
    target: Target,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Show what a run would do: stages, digests, and what the store already holds. Changes nothing.

    S3 credentials come from the environment, as for AWS's own tools.
    """
    from distillchain_cli.local.plan_view import fetch_forecast, plan_table, summary

    chain, _ = read_target(
        target,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: connect(access).fetch_chain(name),
        note=print_message,
    )
    planned = plan_of(chain, source=target)
    forecasts = fetch_forecast(planned)
    if is_document(output):
        stages = [item.to_document() for item in forecasts if not item.stage.is_evidence]
        document = {"chain": planned.chain.name, "storage": planned.chain.spec.storage.uri, "stages": stages}
        if planned.evidence:
            document["evidence"] = [item.to_document() for item in forecasts if item.stage.is_evidence]
        print_document(document, output)
    else:
        print_result(plan_table(forecasts, width=None if output == Output.WIDE else WIDTH))
    print_message(summary(planned, forecasts))
