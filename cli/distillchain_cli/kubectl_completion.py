"""The executable `kubectl_complete-distillchain`, by which kubectl completes `kubectl distillchain`."""

from __future__ import annotations

import io
import os
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress

from distillchain_cli.main import build_command
from distillchain_cli.program import COMPLETE_VARIABLE, PROGRAM

NO_FILES = ":4"  # cobra's ShellCompDirectiveNoFileComp; without it, kubectl lets the shell offer files


def kubectl_complete() -> None:
    """Prints candidates for the words after `kubectl distillchain`, which kubectl passes as arguments.

    One candidate per line, with its description after a tab, as typer prints them for fish. The last line tells the
    shell to offer no file names. It is left out when there are no candidates, because then an argument may be a file.
    """
    words = sys.argv[1:] or [""]
    os.environ[COMPLETE_VARIABLE] = "complete_fish"
    os.environ["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    os.environ["_TYPER_COMPLETE_ARGS"] = " ".join([PROGRAM, *map(shlex.quote, words[:-1]), words[-1]])
    answer = io.StringIO()
    with redirect_stdout(answer), redirect_stderr(io.StringIO()), suppress(SystemExit):
        build_command()(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    if lines := answer.getvalue().strip():
        print(lines, NO_FILES, sep="\n")  # noqa: T201
