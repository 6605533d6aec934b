"""`distillchain run`: a chain on this machine."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import typer

from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.arguments.chain_files import plan_of, read_chain
from distillchain_cli.arguments.filename_option import takes_filename
from distillchain_cli.arguments.options import File, Overrides, Storage, Verbose, log
from distillchain_cli.commands.report import stored_report
from distillchain_cli.errors import EXIT_FAILED, BadInput, RunFailed, require_extra
from distillchain_cli.output.columns import WIDTH
from distillchain_cli.output.output import Output, OutputFormat
from distillchain_cli.output.printing import (
    is_document,
    print_document,
    print_message,
    print_result,
    survive_closed_output,
    troubleshooting_hint,
)

app = typer.Typer()


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
    if report := stored_report(planned):
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
