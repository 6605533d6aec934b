"""`distillchain`: validate, plan and run a chain on this machine; cluster_commands brings those on a cluster.

Results go to stdout, talk to stderr. Exit codes: 0 succeeded, 1 failed, 2 bad input.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import typer.core
from typer.completion import completion_init  # type: ignore[attr-defined]  # see completion.py

from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.resource.status import ChainStatus
from distillchain_cli import cluster_commands, report_command
from distillchain_cli.columns import WIDTH
from distillchain_cli.completion import completion
from distillchain_cli.documents import STDIN, read_chain
from distillchain_cli.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_SUCCEEDED, BadInput, CliError, require_extra
from distillchain_cli.options import (
    Context,
    File,
    Kubeconfig,
    Namespace,
    Output,
    OutputFormat,
    Overrides,
    Storage,
    Target,
    Verbose,
)
from distillchain_cli.printing import document_text, is_document, outlive_readers, result, see, talk
from distillchain_cli.program import COMPLETE_VARIABLE, PROGRAM, program
from distillchain_cli.targets import read_target

log = logging.getLogger("distillchain_cli")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: distillchain validate chain.yaml",
)


def _print_version(value: bool) -> None:
    if value:
        result(f"distillchain {importlib.metadata.version('distillchain')}")
        raise typer.Exit


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
    result(f"{source}: valid: DistillationChain {chain.name}, {relay}; nothing was changed")


@app.command(epilog="Example: distillchain plan chain.yaml -o json")
def plan(
    target: Target,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    _verbose: Verbose = False,
) -> None:
    """Show what a run would do: stages, digests, what is committed in the store. Changes nothing.

    S3 credentials come from the environment, as AWS's own tools take them.
    """
    from distillchain_cli.plan_view import fetch_outlook, plan_table, summary

    chain, _ = read_target(
        target,
        storage=storage,
        overrides=overrides or (),
        fetch_chain=lambda name: cluster_commands.connect(kubeconfig, context, namespace).fetch_chain(name),
    )
    planned = build_plan(chain)
    outlook = fetch_outlook(planned)
    if is_document(output):
        stages = [item.to_document() for item in outlook]
        result(
            document_text(
                {"chain": planned.chain.name, "storage": planned.chain.spec.storage.uri, "stages": stages}, output
            )
        )
    else:
        result(plan_table(outlook, width=None if output is Output.WIDE else WIDTH))
    talk(summary(planned, outlook))


@app.command(epilog="Example: distillchain run chain.yaml --storage file://./store")
def run(
    file: File,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Run a chain on this machine. Stages that are committed in the store are verified and used, not trained again.

    Ctrl-C saves the state of the running stage; the same command goes on from there. SIGTERM and a terminal that is
    closed do so too; a third Ctrl-C kills it and loses what is not saved. Under nohup a run outlives its terminal, and
    one whose output nobody reads any more goes on.
    """
    outlive_readers()
    chain = read_chain(file, overrides=overrides or (), storage=storage)
    if chain.spec.suspend:
        raise BadInput("spec.suspend: got true, expected false to run; add --set spec.suspend=false")
    require_extra("trainer", "torch", purpose="training")
    folder = Path(tempfile.mkdtemp(prefix=f"distillchain-{chain.name}-"))
    log.debug("logs of the trainers are in %s", folder)
    status = _run_on_this_machine(chain, folder, output)
    if status.phase == "Succeeded":
        talk(f"succeeded: {status.result.checkpoint if status.result else status.message}")
        if place := report_command.stored_report(build_plan(chain)):
            talk(f"report: {place}")
        if not _verbose:
            shutil.rmtree(folder, ignore_errors=True)  # a chain that succeeded has not failed for its logs' sake
        return
    ended = next(entry for entry in status.stages if entry.phase in ("Failed", "Suspended"))
    if ended.phase == "Suspended":
        talk(f"stopped: {ended.message}")
        talk("to go on, run the same command again")
    else:
        talk(f"failed: {ended.message}")
        if ended.failure_class:
            talk(see(ended.failure_class))
    talk(f"logs of the trainers: {folder}")
    raise typer.Exit(EXIT_FAILED)


def _run_on_this_machine(chain: DistillationChain, folder: Path, output: Output) -> ChainStatus:
    from distillchain_cli.live import open_view
    from distillchain_cli.processes import Place
    from distillchain_cli.run import run_chain
    from distillchain_cli.table import results_table

    planned: Plan = build_plan(chain)
    with open_view(sys.stderr, [stage.name for stage in planned.stages], metric=chain.spec.task.metric) as view:
        status = run_chain(planned, Place(folder), view=view)
    if is_document(output):
        result(document_text(status.to_document(), output))
    else:
        result(results_table(planned, status, width=None if output is Output.WIDE else WIDTH))
    return status


app.add_typer(cluster_commands.app)
app.add_typer(report_command.app)
app.command(epilog="Example: distillchain completion bash")(completion)


def build_command() -> typer.core.TyperGroup:
    """The command with its texts for the name under which it was started."""
    completion_init()
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    if program() != PROGRAM:
        for part in (command, *command.commands.values()):
            part.epilog = (part.epilog or "").replace(f"Example: {PROGRAM} ", f"Example: {program()} ")
    return command


def main() -> int:
    """The entry point: runs a command. Returns: the exit code, unless typer ends the process itself."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    try:
        build_command()(prog_name=program(), complete_var=COMPLETE_VARIABLE)
    except BadDocument as error:
        for fault in error.faults:
            talk(f"{error.source}: {fault}")
        log.debug("cause", exc_info=error)
        return EXIT_BAD_INPUT
    except CliError as error:
        talk(str(error))
        log.debug("cause", exc_info=error)
        return error.exit_code
    except Exception as error:
        talk(f"{program()} broke: {type(error).__name__}: {error}; run it again with -v, and report it")
        log.debug("cause", exc_info=error)
        return EXIT_FAILED
    return EXIT_SUCCEEDED
