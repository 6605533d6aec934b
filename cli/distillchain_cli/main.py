"""`distillchain`: validate, plan and run a chain on this machine; status and retry of one on a cluster.

Results go to stdout, talk to stderr. Exit codes: 0 succeeded, 1 failed, 2 bad input.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from distillchain_api.chain import DistillationChain
from distillchain_api.faults import BadDocument
from distillchain_api.status import ChainStatus
from distillchain_cli.documents import STDIN, read_chain
from distillchain_cli.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_SUCCEEDED, BadInput, CliError, require_extra
from distillchain_cli.report_command import ReportFormat, report_text, stored_report, write_report
from distillchain_operator.plan import Plan, build_plan

log = logging.getLogger("distillchain_cli")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: distillchain validate chain.yaml",
)


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


def _be_verbose(value: bool) -> bool:
    if value:
        log.setLevel(logging.DEBUG)
    return value


def _print_version(value: bool) -> None:
    if value:
        _result(f"distillchain {importlib.metadata.version('distillchain')}")
        raise typer.Exit


File = Annotated[str, typer.Argument(metavar="FILE", help="A DistillationChain in YAML, or - for stdin.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a DistillationChain on the cluster.")]
Storage = Annotated[
    str | None, typer.Option(metavar="URI", help="Store to use instead of spec.storage: s3:// or file://.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Replace a field, such as spec.stages[tiny].training.epochs=1."),
]
OutputFormat = Annotated[Output, typer.Option("--output", "-o", help="How the result is printed.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=_be_verbose, help="Say more; show the traceback of a failure.")
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace; empty: the one of the kubeconfig's context.")
]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig; empty: the current one.")]
Kubeconfig = Annotated[str | None, typer.Option(metavar="FILE", help="Empty: $KUBECONFIG, else ~/.kube/config.")]


@app.callback()
def distillchain(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Progressive distillation: teacher -> medium -> small -> tiny, one verified checkpoint at a time.

    Exit codes: 0 succeeded, 1 failed, 2 bad input.
    """


@app.command(epilog="Example: distillchain validate chain.yaml --set spec.task.maxLength=64")
def validate(file: File, storage: Storage = None, overrides: Overrides = None, _verbose: Verbose = False) -> None:
    """Check a chain and say what it is. Changes nothing; looks at no data, no model and no store."""
    chain = read_chain(file, overrides=overrides or (), storage=storage)
    planned = build_plan(chain)
    relay = " -> ".join([chain.spec.teacher.model, *(stage.name for stage in planned.stages)])
    source = "stdin" if file == STDIN else file
    _result(f"{source}: valid: DistillationChain {chain.name}, {relay}; nothing was changed")


@app.command(epilog="Example: distillchain plan chain.yaml -o json")
def plan(
    file: File,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Show what a run would do: stages, digests, what is committed in the store. Changes nothing."""
    from distillchain_cli.plan_view import fetch_outlook, plan_table, summary

    planned = build_plan(read_chain(file, overrides=overrides or (), storage=storage))
    outlook = fetch_outlook(planned)
    if output is Output.JSON:
        stages = [item.to_document() for item in outlook]
        _result(_pretty({"chain": planned.chain.name, "storage": planned.chain.spec.storage.uri, "stages": stages}))
    else:
        _result(plan_table(outlook))
    _talk(summary(planned, outlook))


@app.command(epilog="Example: distillchain run chain.yaml --storage file://./store")
def run(
    file: File,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Run a chain on this machine. Stages that are committed in the store are verified and used, not trained again.

    Ctrl-C saves the state of the running stage; the same command goes on from there.
    """
    chain = read_chain(file, overrides=overrides or (), storage=storage)
    if chain.spec.suspend:
        raise BadInput("spec.suspend: got true, expected false to run; add --set spec.suspend=false")
    require_extra("trainer", "torch", purpose="training")
    folder = Path(tempfile.mkdtemp(prefix=f"distillchain-{chain.name}-"))
    log.debug("logs of the trainers are in %s", folder)
    status = _run_on_this_machine(chain, folder, output)
    if status.phase == "Succeeded":
        _talk(f"succeeded: {status.result.checkpoint if status.result else status.message}")
        if place := stored_report(build_plan(chain)):
            _talk(f"report: {place}")
        if not _verbose:
            shutil.rmtree(folder)
        return
    ended = next(entry for entry in status.stages if entry.phase in ("Failed", "Suspended"))
    if ended.phase == "Suspended":
        _talk(f"stopped: {ended.message}")
        _talk("to go on, run the same command again")
    else:
        _talk(f"failed: {ended.message}")
    _talk(f"logs of the trainers: {folder}")
    raise typer.Exit(EXIT_FAILED)


def _run_on_this_machine(chain: DistillationChain, folder: Path, output: Output) -> ChainStatus:
    from distillchain_cli.live import open_view
    from distillchain_cli.processes import Place
    from distillchain_cli.run import run_chain
    from distillchain_cli.table import results_table

    planned: Plan = build_plan(chain)
    with open_view(sys.stderr, [stage.name for stage in planned.stages], metric=chain.spec.task.metric) as view:
        status = run_chain(planned, Place(folder), view=view)
    _result(_pretty(status.to_document()) if output is Output.JSON else results_table(planned, status))
    return status


@app.command(epilog="Example: distillchain status sst2-femto -o json")
def status(
    name: Name,
    namespace: Namespace = None,
    output: OutputFormat = Output.TABLE,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Show how a chain on the cluster stands."""
    from distillchain_cli.cluster import Cluster, behind, status_of, status_text

    chain = Cluster(kubeconfig=kubeconfig, context=context, namespace=namespace).fetch_chain(name)
    if output is Output.JSON:
        _result(_pretty(chain.get("status") or {}))
        return
    found = status_of(chain)
    _result(status_text(chain, found))
    if warning := behind(chain, found):
        _talk(warning)


@app.command(epilog="Example: distillchain retry sst2-femto --stage tiny")
def retry(
    name: Name,
    namespace: Namespace = None,
    stage: Annotated[str | None, typer.Option(help="Stage to try again; empty: the one that failed.")] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Try the failed stage of a chain on the cluster again: its Job is deleted, and the operator makes it anew."""
    from distillchain_cli.cluster import Cluster
    from distillchain_cli.cluster import retry as retry_stage

    cluster = Cluster(kubeconfig=kubeconfig, context=context, namespace=namespace)
    _result(retry_stage(cluster, name, stage))


@app.command(epilog="Example: distillchain report chain.yaml --to report.html")
def report(
    target: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="A chain file, or the name of a chain on the cluster.")
    ],
    output: Annotated[ReportFormat, typer.Option("--output", "-o", help="How it is written.")] = ReportFormat.HTML,
    to: Annotated[str | None, typer.Option(metavar="FILE", help="Write it there; empty: to stdout.")] = None,
    storage: Storage = None,
    overrides: Overrides = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Write the report on a chain, finished or not, from what is in its store. Changes nothing there.

    S3 credentials come from the environment, as AWS's own tools take them.
    """
    from distillchain_cli.cluster import Cluster

    text = report_text(
        target,
        output,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: Cluster(kubeconfig=kubeconfig, context=context, namespace=namespace).fetch_chain(name),
    )
    if to is None:
        _result(text.rstrip("\n"))
        return
    write_report(text, to)
    _talk(f"report: {to}")


def _result(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _pretty(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False)


def main() -> int:
    """The entry point: runs a command. Returns: the exit code, unless typer ends the process itself."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    try:
        app()
    except BadDocument as error:
        for fault in error.faults:
            _talk(f"{error.source}: {fault}")
        log.debug("cause", exc_info=error)
        return EXIT_BAD_INPUT
    except CliError as error:
        _talk(str(error))
        log.debug("cause", exc_info=error)
        return error.exit_code
    except Exception as error:
        _talk(f"distillchain broke: {type(error).__name__}: {error}; run it again with -v, and report it")
        log.debug("cause", exc_info=error)
        return EXIT_FAILED
    return EXIT_SUCCEEDED
