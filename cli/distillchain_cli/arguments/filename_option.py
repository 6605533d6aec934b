"""`-f FILE`, as kubectl's users write it, beside the argument FILE."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from distillchain_cli.errors import BadInput
from distillchain_cli.program import program_name

Filename = Annotated[
    str | None,
    typer.Option("--filename", "-f", metavar="FILE", help="A chain file, or - for stdin, in place of the argument."),
]
ARGUMENTS = ("file", "target")


def takes_filename(function: Callable[..., None]) -> Callable[..., None]:
    """The command with `-f` for its argument, which is then optional."""
    signature = inspect.signature(function, eval_str=True)
    name = next(argument for argument in ARGUMENTS if argument in signature.parameters)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        parameter.replace(kind=kind, default=None) if parameter.name == name else parameter.replace(kind=kind)
        for parameter in signature.parameters.values()
    ]
    option = inspect.Parameter("filename", kind, default=None, annotation=Filename)

    @functools.wraps(function)
    def command(*, filename: str | None, **values: Any) -> None:
        argument = values.pop(name)
        if (argument is None) == (filename is None):
            got = "none" if filename is None else f"{argument} and {filename}"
            raise BadInput(f"got {got}, expected one chain, such as: {program_name()} {function.__name__} chain.yaml")
        function(**{name: argument or filename}, **values)

    command.__dict__["__signature__"] = signature.replace(parameters=[*parameters, option])
    return command
