"""The command `distillchain`: validate, plan and run a chain on this machine, and the commands of the other modules.

Results go to stdout, everything else to stderr. Exit codes: 0 succeeded, 1 failed, 2 bad input.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import typer.core
from typer.completion import completion_init  # type: ignore[attr-defined]  # see completion.py

from distillchain_api.faults import BadDocument
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.chain_files import plan_of, read_chain
from distillchain_cli.arguments.choices import choice_of
from distillchain_cli.arguments.completion import completion
from distillchain_cli.arguments.filename_option import takes_filename
from distillchain_cli.arguments.options import (
    File,
    Filenames,
    Files,
    Overrides,
    Recursive,
    Storage,
    Target,
    Verbose,
    log,
)
from distillchain_cli.arguments.targets import read_target
from distillchain_cli.commands import advise as advise_command
from distillchain_cli.commands import change as change_commands
from distillchain_cli.commands import compare as compare_command
from distillchain_cli.commands import download as download_command
from distillchain_cli.commands import gc as gc_command
from distillchain_cli.commands import inspect as cluster_commands
from distillchain_cli.commands import report as report_command
from distillchain_cli.commands.validate import validate_files
from distillchain_cli.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_SUCCEEDED,
    BadInput,
    CliError,
    RunFailed,
    require_extra,
)
from distillchain_cli.output.columns import WIDTH
from distillchain_cli.output.output import Output, OutputFormat
from distillchain_cli.output.printing import (
    LogFormatter,
    is_document,
    print_document,
    print_faults,
    print_message,
    print_result,
    survive_closed_output,
    troubleshooting_hint,
    use_utf8,
)
from distillchain_cli.program import COMPLETE_VARIABLE, PROGRAM, program_name
from distillchain_cli.usage_hints import CommandGroup

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: distillchain validate chain.yaml",
)


class DryRun(StrEnum):
    """Where `validate` checks chains."""

    CLIENT = "client"
    SERVER = "server"


def _print_version(value: bool) -> None:
    if value:
        version()
        raise typer.Exit


@app.callback()
def distillchain(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Progressive distillation: teacher -> medium -> small -> tiny, one verified checkpoint at a time.

    Exit codes: 0 succeeded, 1 failed, 2 bad input.
    """


@app.command(epilog="Example: distillchain validate chain.yaml --set spec.task.maxLength=64")
@takes_access
def validate(
    access: Access,
    files: Files = None,
    filenames: Filenames = None,
    recursive: Recursive = False,
    dry_run: Annotated[
        DryRun,
        typer.Option(
            metavar="|".join(DryRun),
            parser=choice_of(DryRun),
            help="server: the API server checks the chains too, with its CRD, policies and webhooks.",
        ),
    ] = DryRun.CLIENT,
    storage: Storage = None,
    overrides: Overrides = None,
    _verbose: Verbose = False,
) -> None:
    """Check chains and summarise them. Changes nothing, and reads no data, model or store."""
    paths = [*(files or []), *(filenames or [])]
    if not paths:
        raise BadInput(f"got no file, expected at least one, such as: {program_name()} validate chain.yaml")
    # Without a cluster no option of it is looked at, so that a laptop without kubeconfig can validate.
    cluster = connect(access) if dry_run is DryRun.SERVER else None
    if not validate_files(paths, storage=storage, overrides=overrides or (), cluster=cluster, recursive=recursive):
        raise typer.Exit(EXIT_BAD_INPUT)


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


@app.command(epilog="Example: distillchain run chain.yaml --storage file://./store")
@takes_filename
def run(
    file: File,
    storage: Storage = None,
    overrides: Overrides = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """Run a chain on this machine. Stages that the store already holds are verified and used, not trained again.

    Ctrl-C saves the state of the running stage, and the same command continues from there. SIGTERM and a closed
    terminal do the same. A third Ctrl-C kills the trainer and loses what is not saved. Under nohup a run continues
    after its terminal is closed, and any run continues when the reader of its output exits.
    """
    # First of all: a terminal that closes while the chain is read must not kill the command either.
    survive_closed_output()
    chain = read_chain(file, overrides=overrides or (), storage=storage, note=print_message)
    planned = plan_of(chain, source=file)
    # On a cluster a suspended chain waits; here nobody would resume it.
    if chain.spec.suspend:
        raise BadInput("spec.suspend: got true, expected false to run; add --set spec.suspend=false")
    require_extra("trainer", "torch", purpose="training")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"distillchain-{chain.name}-"))
    except OSError as error:
        why = error.strerror or error
        raise RunFailed(f"no temporary folder can be created ({why}); set TMPDIR to a folder with space") from error
    log.debug("logs of the trainers are in %s", folder)
    status = _run_here(planned, folder, output)
    if status.phase != "Succeeded":
        _explain_failure(status)
        print_message(f"logs of the trainers: {folder}")
        raise typer.Exit(EXIT_FAILED)
    print_message(f"succeeded: {status.result.checkpoint if status.result else status.message}")
    _say_what_evidence_lacks(status)
    if report := report_command.stored_report(planned):
        print_message(f"report: {report}")
    if not _verbose:
        shutil.rmtree(folder, ignore_errors=True)  # logs that cannot be deleted do not make the run a failure


def _run_here(planned: Plan, folder: Path, output: Output) -> ChainStatus:
    """Runs the chain with a live view, and prints the result."""
    from distillchain_cli.local.processes import RunFolder
    from distillchain_cli.local.run import run_chain
    from distillchain_cli.local.run_view import open_view
    from distillchain_cli.local.table import results_table

    metric = planned.chain.spec.task.metric
    with open_view(sys.stderr, [stage.name for stage in planned.vertices], metric=metric) as view:
        status = run_chain(planned, RunFolder(folder), view=view)
    if is_document(output):
        print_document(status.to_document(), output)
    else:
        width = None if output == Output.WIDE else WIDTH
        print_result(results_table(planned, status, width=width))
    return status


def _say_what_evidence_lacks(status: ChainStatus) -> None:
    """Reports a control that failed. If the evidence was stopped, the command fails, so that a script continues it."""
    ready = next((each for each in status.conditions if each.type == "EvidenceReady"), None)
    if ready is None or ready.status == "True":
        return
    print_message(f"evidence: {ready.message}")
    if any(entry.phase == "Suspended" for entry in status.evidence):
        print_message("to continue, run the same command again")
        raise typer.Exit(EXIT_FAILED)


def _explain_failure(status: ChainStatus) -> None:
    ended = next(entry for entry in status.stages if entry.phase in ("Failed", "Suspended"))
    if ended.phase == "Suspended":
        print_message(f"stopped: {ended.message}")
        print_message("to continue, run the same command again")
        return
    print_message(f"failed: {ended.message}")
    if ended.failure_class:
        print_message(troubleshooting_hint(ended.failure_class))


app.add_typer(cluster_commands.app)
app.add_typer(change_commands.app)
app.add_typer(report_command.app)
app.add_typer(compare_command.app)
app.add_typer(advise_command.app)
app.add_typer(download_command.app)
app.add_typer(gc_command.app)
app.command(epilog="Example: distillchain completion bash")(completion)


@app.command(epilog="Example: distillchain version")
def version() -> None:
    """Print the version."""
    print_result(f"distillchain {importlib.metadata.version('distillchain')}")


def build_command() -> typer.core.TyperGroup:
    """The command, with examples for the name under which it was started."""
    completion_init()
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    for part in command.commands.values():
        for argument in part.params:
            # Typer writes a Python type such as <list[str]> behind the name of an argument. An option has its metavar.
            if isinstance(argument, typer.core.TyperArgument):
                argument.display_type_rich = lambda **_: ""  # type: ignore[method-assign]  # typer has no setting for it
    # Examples are written with `distillchain`; under kubectl they must work when copied.
    if program_name() != PROGRAM:
        for part in (command, *command.commands.values()):
            part.epilog = (part.epilog or "").replace(f"Example: {PROGRAM} ", f"Example: {program_name()} ")
    return command


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise BadInput(f"the current folder cannot be used ({error.strerror}); change to another one") from error


def main() -> int:
    """The entry point: runs a command. Returns: the exit code, unless typer exits the process itself."""
    use_utf8()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    try:
        _check_current_folder()
        build_command()(prog_name=program_name(), complete_var=COMPLETE_VARIABLE)
    except BadDocument as error:
        print_faults(error)
        return EXIT_BAD_INPUT
    except CliError as error:
        print_message(str(error))
        log.debug("cause", exc_info=error)
        return error.exit_code
    except Exception as error:  # a mistake of ours
        print_message(
            f"internal error: {type(error).__name__}: {error}; run it again with -v, and report the traceback"
        )
        log.debug("cause", exc_info=error)
        return EXIT_FAILED
    return EXIT_SUCCEEDED
