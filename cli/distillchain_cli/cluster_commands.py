"""Commands for chains on a cluster: list, status, logs, events, retry, suspend, resume.

What was typed comes in, what is shown goes out; the work is done elsewhere, and imported when it is needed: the
Kubernetes client takes a second to load.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillchain_cli.completion import complete_stage
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
from distillchain_cli.printing import as_list, document_text, is_document, result, see, talk

if TYPE_CHECKING:
    from distillchain_cli.cluster import Cluster

app = typer.Typer()


def connect(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster of the kubeconfig."""
    from distillchain_cli.cluster import Cluster

    return Cluster(kubeconfig=kubeconfig, context=context, namespace=namespace)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is how a person ends what goes on for hours: no word about it."""
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
        raise BadInput(f"--namespace: got {namespace} beside --all-namespaces; leave one of them out")
    cluster = connect(kubeconfig, context, namespace)
    chains = cluster.list_chains(everywhere=everywhere, selector=selector)
    if is_document(output):
        result(document_text(as_list(chains), output))
    elif chains:
        result(list_table(chains, now=datetime.now(UTC), everywhere=everywhere, wide=output is Output.WIDE))
    else:
        where = "on the cluster" if everywhere else f"in namespace {cluster.namespace}"
        talk(f"there are no chains {where}" + (f" with {selector}" if selector else ""))


@app.command(epilog="Example: distillchain status sst2-femto -o json")
def status(
    name: Name,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", "-w", help="Follow it until it succeeds (exit code 0), fails or stays stalled for a minute (1)."
        ),
    ] = False,
    namespace: Namespace = None,
    output: OutputFormat = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Show how a chain on the cluster stands.

    --watch draws a live picture on a terminal and prints a line for each change elsewhere; with -o json or yaml, the
    status at each change. A lost connection is made anew.
    """
    from distillchain_cli.chains import behind, status_of
    from distillchain_cli.status_view import failure_of, status_text

    cluster = connect(kubeconfig, context, namespace)
    if watch:
        _watch(cluster, name, output)
        return
    chain = cluster.fetch_chain(name)
    if is_document(output):
        result(document_text(chain.get("status") or {}, output))
        return
    found = status_of(chain)
    result(status_text(chain, found, wide=output is Output.WIDE))
    if failure_class := failure_of(found):
        talk(see(failure_class))
    if warning := behind(chain, found):
        talk(warning)


def _watch(cluster: Cluster, name: str, output: Output) -> None:
    from rich.console import Console

    from distillchain_cli.status_watch import Documents, Lines, Picture, watch_status

    def document(content: dict[str, Any]) -> None:
        as_line = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        result(as_line if output is Output.JSON else f"---\n{document_text(content, output)}")

    def screen() -> Picture | Lines | Documents:
        if is_document(output):
            return Documents(document)
        return Picture(Console()) if sys.stdout.isatty() else Lines(result)

    with interruptible():
        verdict = watch_status(cluster, name, screen)
    for line in verdict.lines:
        talk(line)
    if not verdict.succeeded:
        raise typer.Exit(EXIT_FAILED)


@app.command(epilog="Example: distillchain logs sst2-femto --stage tiny --tail 20")
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on from stage to stage and pod to pod until the chain ends.")
    ] = False,
    stage: Stage = None,
    tail: Annotated[
        int | None, typer.Option(metavar="LINES", min=0, help="Only the last lines of each pod that is there.")
    ] = None,
    previous: Annotated[
        bool, typer.Option("--previous", "-p", help="Of the pod before the newest of its stage, while it is kept.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="As the trainers wrote them: progress as JSON, no stage.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Print the logs of a chain's trainers.

    In the order in which its stages ran. Log lines go to stdout, pod names and how the chain ended to stderr. The
    log of a pod is gone with the pod: an evicted one is deleted.
    """
    from distillchain_cli.logs import Mouth, Wanted, follow_logs, show_logs

    cluster = connect(kubeconfig, context, namespace)
    wanted = Wanted(stage=stage, tail=tail, previous=previous, raw=raw)
    read = follow_logs if follow else show_logs
    with interruptible():
        read(cluster, name, wanted, Mouth(show=result, say=talk))


@app.command(epilog="Example: distillchain events sst2-femto")
def events(
    name: Name,
    namespace: Namespace = None,
    output: OutputFormat = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Show what the cluster told of a chain.

    The Events of the chain, its Jobs and their pods, the oldest first. The cluster forgets Events, by default after
    an hour.
    """
    from distillchain_cli.events import events_of, events_table

    cluster = connect(kubeconfig, context, namespace)
    chain = cluster.fetch_chain(name)
    documents, _ = cluster.list(cluster.events())
    found = events_of(chain, documents)
    if is_document(output):
        items = [{"apiVersion": "v1", "kind": "Event", **event.document} for event in found]
        result(document_text(as_list(items), output))
        return
    if not found:
        talk(f"there are no Events of {name}: the cluster forgets them, by default after an hour")
        return
    result(events_table(found, now=datetime.now(UTC), wide=output is Output.WIDE))
    for failure_class in dict.fromkeys(event.failure_class for event in found if event.failure_class):
        talk(see(failure_class))


@app.command(epilog="Example: distillchain retry sst2-femto --stage tiny")
def retry(
    name: Name,
    namespace: Namespace = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Stage to try again; empty: the one that failed.", autocompletion=complete_stage
        ),
    ] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Try the failed stage of a chain again.

    Its Job is deleted, and the operator makes it anew.
    """
    from distillchain_cli.retry import retry as retry_stage

    result(retry_stage(connect(kubeconfig, context, namespace), name, stage))


@app.command(epilog="Example: distillchain suspend sst2-femto")
def suspend(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Stop a chain; its state is saved.

    The running stage saves its state and stops, and nothing is started. Sets spec.suspend and nothing else. Where
    the chain is kept in Git, Argo CD or Flux sets it back: edit it there.
    """
    from distillchain_cli.suspend import set_suspend

    result(set_suspend(connect(kubeconfig, context, namespace), name, suspend=True))


@app.command(epilog="Example: distillchain resume sst2-femto")
def resume(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Let a suspended chain go on.

    Its stage goes on from its saved state. Sets spec.suspend and nothing else. Where the chain is kept in Git, Argo
    CD or Flux sets it back: edit it there.
    """
    from distillchain_cli.suspend import set_suspend

    result(set_suspend(connect(kubeconfig, context, namespace), name, suspend=False))
