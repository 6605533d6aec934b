"""Commands that read chains on a cluster: list, status, logs, events, describe.

Each command translates arguments and prints results. The work is done in other modules, which are imported inside the
functions because the Kubernetes client takes a second to load.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.choices import line_count, seconds
from distillchain_cli.arguments.options import (
    AllNamespaces,
    Name,
    Stage,
    Verbose,
)
from distillchain_cli.errors import EXIT_FAILED, BadInput, Refused
from distillchain_cli.output.output import ObjectFormat, Output, OutputFormat
from distillchain_cli.output.printing import (
    as_list,
    document_line,
    interruptible,
    is_document,
    print_document,
    print_message,
    print_result,
    troubleshooting_hint,
)

if TYPE_CHECKING:
    from distillchain_cli.api_server.cluster import Cluster
    from distillchain_cli.status.screens import DocumentScreen, LineScreen, LiveScreen

app = typer.Typer()


@app.command("list", epilog="Example: distillchain list -A")
@takes_access
def list_(
    access: Access,
    everywhere: AllNamespaces = False,
    selector: Annotated[
        str | None, typer.Option("--selector", "-l", metavar="LABELS", help="Only chains with these labels: team=nlp.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Then print a line for each change, until Ctrl-C ends the command.")
    ] = False,
    output: ObjectFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """List the chains on the cluster."""
    from distillchain_cli.api_server.chains import resource_name
    from distillchain_cli.status.view import list_table

    if everywhere and access.namespace:
        raise BadInput(f"--namespace: got {access.namespace} together with --all-namespaces; leave one of them out")
    cluster = connect(access)
    if watch:
        from distillchain_cli.status.list_watch import watch_list

        with interruptible():
            watch_list(
                cluster,
                everywhere=everywhere,
                selector=selector,
                output=output,
                line=print_result,
                note=print_message,
            )
    chains = cluster.list_chains(everywhere=everywhere, selector=selector)
    if is_document(output):
        print_document(as_list(chains), output)
    elif output == Output.NAME:
        print_result("\n".join(map(resource_name, chains)))
    elif chains:
        print_result(list_table(chains, now=datetime.now(UTC), everywhere=everywhere, wide=output == Output.WIDE))
    else:
        where = "on the cluster" if everywhere else f"in namespace {cluster.namespace}"
        print_message(f"there are no chains {where}" + (f" with {selector}" if selector else ""))


@app.command(epilog="Example: distillchain status sst2-femto -o json")
@takes_access
def status(
    access: Access,
    name: Name,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Follow the chain until it succeeds (exit code 0), fails, or stays stalled for a minute (1).",
        ),
    ] = False,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Show the status of a chain on the cluster.

    --watch draws a live picture on a terminal, and prints a line for each change elsewhere; with -o json or yaml, it
    prints the status after each change. It reconnects when the connection is lost.
    """
    from distillchain_cli.api_server.chains import outdated_status_warning, status_of
    from distillchain_cli.status.view import failure_of, status_text

    cluster = connect(access)
    if watch:
        _watch(cluster, name, output)
        return
    chain = cluster.fetch_chain(name)
    if is_document(output):
        print_document(chain.get("status") or {}, output)
        return
    found = status_of(chain)
    print_result(status_text(chain, found, wide=output == Output.WIDE))
    if failure_class := failure_of(found):
        print_message(troubleshooting_hint(failure_class))
    if warning := outdated_status_warning(chain, found):
        print_message(warning)


def _watch(cluster: Cluster, name: str, output: Output) -> None:
    from rich.console import Console

    from distillchain_cli.status.screens import DocumentScreen, LineScreen, LiveScreen
    from distillchain_cli.status.watch import watch_status

    def print_change(content: dict[str, Any]) -> None:
        print_result(document_line(content, output))

    def open_screen() -> LiveScreen | LineScreen | DocumentScreen:
        if is_document(output):
            return DocumentScreen(print_change)
        return LiveScreen(Console()) if sys.stdout.isatty() else LineScreen(print_result)

    with interruptible():
        outcome = watch_status(cluster, name, open_screen)
    for line in outcome.lines:
        print_message(line)
    if not outcome.succeeded:
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example: distillchain logs sst2-femto --stage tiny --tail 20")
@takes_access
def logs(
    access: Access,
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the logs from stage to stage until the chain ends.")
    ] = False,
    stage: Stage = None,
    tail: Annotated[
        int | None,
        typer.Option(metavar="LINES", parser=line_count, help="Only the last lines of each pod that exists now."),
    ] = None,
    since: Annotated[
        int | None,
        typer.Option(metavar="DURATION", parser=seconds, help="Only lines of the last 30s, 5m or 1h30m."),
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="The pod before the newest of its stage, if it still exists.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Lines as the trainers wrote them: progress as JSON, no stage in front.")
    ] = False,
    _verbose: Verbose = False,
) -> None:
    """Print the logs of a chain's trainers, in the order in which its stages ran.

    Log lines go to stdout; pod names and the outcome of the chain go to stderr. When a pod is deleted, as after an
    eviction, its log is lost.
    """
    from distillchain_cli.status.logs import LogOutput, LogSelection, follow_logs, show_logs

    cluster = connect(access)
    selection = LogSelection(stage=stage, tail=tail, newest_s=since, previous=previous, raw=raw)
    read = follow_logs if follow else show_logs
    with interruptible():
        read(cluster, name, selection, LogOutput(line=print_result, note=print_message))


@app.command(epilog="Example: distillchain events sst2-femto")
@takes_access
def events(
    access: Access,
    name: Name,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Show the Kubernetes Events of a chain, its Jobs and their pods, oldest first.

    The cluster deletes Events, by default after an hour.
    """
    from distillchain_cli.status.events import events_of, events_table

    cluster = connect(access)
    chain = cluster.fetch_chain(name)
    documents, _ = cluster.list(cluster.events())
    found = events_of(chain, documents)
    if is_document(output):
        items = [{"apiVersion": "v1", "kind": "Event", **event.document} for event in found]
        print_document(as_list(items), output)
        return
    if not found:
        print_message(f"there are no Events of {name}: the cluster deletes them, by default after an hour")
        return
    print_result(events_table(found, now=datetime.now(UTC), wide=output == Output.WIDE))
    for failure_class in dict.fromkeys(event.failure_class for event in found if event.failure_class):
        print_message(troubleshooting_hint(failure_class))


@app.command(epilog="Example: distillchain describe sst2-femto")
@takes_access
def describe(access: Access, name: Name, _verbose: Verbose = False) -> None:
    """Show all about a chain: its spec in short, its status, conditions and Events."""
    from distillchain_cli.api_server.chains import status_of
    from distillchain_cli.status.describe import describe as describe_chain
    from distillchain_cli.status.events import events_of

    cluster = connect(access)
    chain = cluster.fetch_chain(name)
    try:
        events = events_of(chain, cluster.list(cluster.events())[0])
    except Refused:  # the user may be allowed to read chains but not Events
        events = None
    print_result(describe_chain(chain, status_of(chain), events, now=datetime.now(UTC)))
