"""The values of `-o`: tables for readers, JSON and YAML for programs, and kubectl's JSONPath templates and names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from distillchain_cli.arguments.choices import bad_value, name_of
from distillchain_cli.output.jsonpath import BadTemplate, Template, parse_template

JSONPATH = "jsonpath="


@dataclass(frozen=True)
class Output:
    """How a result is printed.

    Attributes:
        template: of a JSONPath output.
    """

    name: str
    template: Template | None = None

    TABLE: ClassVar[Output]
    WIDE: ClassVar[Output]
    JSON: ClassVar[Output]
    YAML: ClassVar[Output]
    NAME: ClassVar[Output]

    def __str__(self) -> str:
        return self.name


Output.TABLE, Output.WIDE, Output.NAME = Output("table"), Output("wide"), Output("name")
Output.JSON, Output.YAML = Output("json"), Output("yaml")
FORMATS = (Output.TABLE, Output.WIDE, Output.JSON, Output.YAML)
OBJECT_FORMATS = (*FORMATS, Output.NAME)


def output_of(formats: Sequence[Output]) -> Callable[[str | Output], Output]:
    """A parser for these formats and for `jsonpath=TEMPLATE`."""
    names = [str(output) for output in formats]

    def parse(text: str | Output) -> Output:
        # typer also passes default values, which are parsed already.
        if isinstance(text, Output):
            return text
        if not text.startswith(JSONPATH):
            return Output(name_of(text, [*names, f"{JSONPATH}TEMPLATE"], to_file=">"))
        try:
            return Output(text, parse_template(text.removeprefix(JSONPATH)))
        except BadTemplate as error:
            raise bad_value(text, str(error)) from error

    return parse


def _metavar(formats: Sequence[Output]) -> str:
    return "|".join([*map(str, formats), f"{JSONPATH}TEMPLATE"])


def _complete(formats: Sequence[Output]) -> Callable[[str], list[str]]:
    def candidates(incomplete: str) -> list[str]:
        return [str(output) for output in formats if str(output).startswith(incomplete)]

    return candidates


OutputFormat = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        metavar=_metavar(FORMATS),
        parser=output_of(FORMATS),
        autocompletion=_complete(FORMATS),
        help="Output format; wide has more columns and cuts nothing, and jsonpath is kubectl's.",
    ),
]
ObjectFormat = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        metavar=_metavar(OBJECT_FORMATS),
        parser=output_of(OBJECT_FORMATS),
        autocompletion=_complete(OBJECT_FORMATS),
        help="Output format; wide has more columns and cuts nothing, name is for kubectl, and jsonpath is kubectl's.",
    ),
]
