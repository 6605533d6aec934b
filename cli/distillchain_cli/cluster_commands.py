"""Commands for chains on a cluster: list, status, logs, events, retry, suspend, resume.

Each command translates arguments and prints results. The work is done in other modules, which are imported inside the
functions because the Kubernetes client takes a second to load.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillchain_cli.choices import line_count
from distillchain_cli.completion import complete_stage
from distillchain_cli.connection import connect
from distillchain_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, BadInput
from distillchain_cli.options import (
    AllNamespaces,
    Context,
    Kubeconfig,
    Name,
    Namespace,
    Output,
    OutputFormat,
    Stage,
    Verbose,
)
from distillchain_cli.printing import (
    as_list,
    document_text,
    is_document,
    print_message,
    print_result,
    troubleshooting_hint,
)

if TYPE_CHECKING:
    from distillchain_cli.cluster import Cluster
    from distillchain_cli.status_screens import DocumentScreen, LineScreen, LiveScreen

app = typer.Typer()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ends the command without a message on Ctrl-C, which is how users end a command that follows something."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command("list", epilog="Example: distillchain list -A")
def list_(
    namespace: Namespace = None,
    everywhere: AllNamespaces = False,
    selector: Annotated[
        str | None, typer.Option("--selector", "-l", metavar="LABELS", help="Only chains with these labels: team=nlp.")
    ] = None,
    output: OutputFormat = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """List the chains on the cluster."""
    from distillchain_cli.status_view import list_table

    if everywhere and namespace:
        raise BadInput(f"--namespace: got {namespace} together with --all-namespaces; leave one of them out")
    cluster = connect(kubeconfig, context, namespace)
    chains = cluster.list_chains(everywhere=everywhere, selector=selector)
    if is_document(output):
        print_result(document_text(as_list(chains), output))
    elif chains:
        print_result(list_table(chains, now=datetime.now(UTC), everywhere=everywhere, wide=output is Output.WIDE))
    else:
        where = "on the cluster" if everywhere else f"in namespace {cluster.namespace}"
        print_message(f"there are no chains {where}" + (f" with {selector}" if selector else ""))


@app.command(epilog="Example: distillchain status sst2-femto -o json")
def status(
    name: Name,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Follow the chain until it succeeds (exit code 0), fails, or stays stalled for a minute (1).",
        ),
    ] = False,
    namespace: Namespace = None,
    output: OutputFormat = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Show the status of a chain on the cluster.

    --watch draws a live picture on a terminal, and prints a line for each change elsewhere; with -o json or yaml, it
    prints the status after each change. It reconnects when the connection is lost.
    """
    from distillchain_cli.chains import outdated_status_warning, status_of
    from distillchain_cli.status_view import failure_of, status_text

    cluster = connect(kubeconfig, context, namespace)
    if watch:
        _watch(cluster, name, output)
        return
    chain = cluster.fetch_chain(name)
    if is_document(output):
        print_result(document_text(chain.get("status") or {}, output))
        return
    found = status_of(chain)
    print_result(status_text(chain, found, wide=output is Output.WIDE))
    if failure_class := failure_of(found):
        print_message(troubleshooting_hint(failure_class))
    if warning := outdated_status_warning(chain, found):
        print_message(warning)


def _watch(cluster: Cluster, name: str, output: Output) -> None:
    from rich.console import Console

    from distillchain_cli.status_screens import DocumentScreen, LineScreen, LiveScreen
    from distillchain_cli.status_watch import watch_status

    def print_document(content: dict[str, Any]) -> None:
        one_line = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        print_result(one_line if output is Output.JSON else f"---\n{document_text(content, output)}")

    def open_screen() -> LiveScreen | LineScreen | DocumentScreen:
        if is_document(output):
            return DocumentScreen(print_document)
        return LiveScreen(Console()) if sys.stdout.isatty() else LineScreen(print_result)

    with interruptible():
        outcome = watch_status(cluster, name, open_screen)
    for line in outcome.lines:
        print_message(line)
    if not outcome.succeeded:
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example: distillchain logs sst2-femto --stage tiny --tail 20")
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Follow the logs from stage to stage until the chain ends.")
    ] = False,
    stage: Stage = None,
    tail: Annotated[
        int | None,
        typer.Option(metavar="LINES", parser=line_count, help="Only the last lines of each pod that exists now."),
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="The pod before the newest of its stage, if it still exists.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Lines as the trainers wrote them: progress as JSON, no stage in front.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Print the logs of a chain's trainers, in the order in which its stages ran.

    Log lines go to stdout; pod names and the outcome of the chain go to stderr. When a pod is deleted, as after an
    eviction, its log is lost.
    """
    from distillchain_cli.logs import LogOutput, LogSelection, follow_logs, show_logs

    cluster = connect(kubeconfig, context, namespace)
    selection = LogSelection(stage=stage, tail=tail, previous=previous, raw=raw)
    read = follow_logs if follow else show_logs
    with interruptible():
        read(cluster, name, selection, LogOutput(line=print_result, note=print_message))


@app.command(epilog="Example: distillchain events sst2-femto")
def events(
    name: Name,
    namespace: Namespace = None,
    output: OutputFormat = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Show the Kubernetes Events of a chain, its Jobs and their pods, oldest first.

    The cluster deletes Events, by default after an hour.
    """
    from distillchain_cli.events import events_of, events_table

    cluster = connect(kubeconfig, context, namespace)
    chain = cluster.fetch_chain(name)
    documents, _ = cluster.list(cluster.events())
    found = events_of(chain, documents)
    if is_document(output):
        items = [{"apiVersion": "v1", "kind": "Event", **event.document} for event in found]
        print_result(document_text(as_list(items), output))
        return
    if not found:
        print_message(f"there are no Events of {name}: the cluster deletes them, by default after an hour")
        return
    print_result(events_table(found, now=datetime.now(UTC), wide=output is Output.WIDE))
    for failure_class in dict.fromkeys(event.failure_class for event in found if event.failure_class):
        print_message(troubleshooting_hint(failure_class))


@app.command(epilog="Example: distillchain retry sst2-femto --stage tiny")
def retry(
    name: Name,
    namespace: Namespace = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Stage to retry; default: the stage that failed.", autocompletion=complete_stage
        ),
    ] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Retry the failed stage of a chain.

    Deletes the stage's Job, and the operator creates it again.
    """
    from distillchain_cli.retry import retry as retry_stage

    print_result(retry_stage(connect(kubeconfig, context, namespace), name, stage))


@app.command(epilog="Example: distillchain suspend sst2-femto")
def suspend(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Stop a chain and save its state.

    The running stage saves its state and stops, and no other stage starts. Sets only spec.suspend. If the chain is
    managed from Git, Argo CD or Flux resets the field: edit it in Git instead.
    """
    from distillchain_cli.suspend import set_suspend

    print_result(set_suspend(connect(kubeconfig, context, namespace), name, suspend=True))


@app.command(epilog="Example: distillchain resume sst2-femto")
def resume(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Let a suspended chain continue.

    Its stage continues from the saved state. Sets only spec.suspend. If the chain is managed from Git, Argo CD or Flux
    resets the field: edit it in Git instead.
    """
    from distillchain_cli.suspend import set_suspend

    print_result(set_suspend(connect(kubeconfig, context, namespace), name, suspend=False))
