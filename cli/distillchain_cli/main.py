"""The command `distillchain`: its subcommands are in the folder commands.

Results go to stdout, everything else to stderr. Exit codes: 0 succeeded, 1 failed, 2 bad input.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.core
from typer.completion import completion_init  # type: ignore[attr-defined]  # see completion.py

from distillchain_api.faults import BadDocument
from distillchain_cli.arguments.options import log
from distillchain_cli.commands import about, advise, change, compare, download, gc, inspect, plan, report, run, validate
from distillchain_cli.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_SUCCEEDED, BadInput, CliError
from distillchain_cli.output.printing import LogFormatter, print_faults, print_message, use_utf8
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


def _print_version(value: bool) -> None:
    if value:
        about.version()
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


for module in (validate, plan, run, inspect, change, report, compare, advise, download, gc, about):
    app.add_typer(module.app)


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
