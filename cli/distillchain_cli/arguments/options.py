"""Arguments and options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from distillchain_cli.arguments.completion import complete_chain, complete_stage

log = logging.getLogger("distillchain_cli")


def set_verbose(value: bool) -> bool:
    """Callback of --verbose."""
    if value:
        log.setLevel(logging.DEBUG)
    return value


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A YAML or JSON file with one DistillationChain, a folder of such files, or - for stdin."
    ),
]
Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="YAML or JSON files, folders of .yaml, .yml and .json files, or - for stdin. Other kinds are skipped.",
    ),
]
Filenames = Annotated[
    list[str] | None,
    typer.Option("--filename", "-f", metavar="FILE", help="The same as the argument FILE. May be repeated."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Read the subfolders of a folder too.")]
Target = Annotated[
    str, typer.Argument(metavar="FILE|NAME", help="A chain file, or the name of a chain on the cluster.")
]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of a DistillationChain on the cluster.", autocompletion=complete_chain),
]
Storage = Annotated[
    str | None, typer.Option(metavar="URI", help="Store to use instead of spec.storage: s3:// or file://.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Replace a field of FILE, such as spec.stages[tiny].training.epochs=1."
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=set_verbose, help="Print more, and the traceback if the command fails."),
]
Stage = Annotated[str | None, typer.Option(metavar="STAGE", help="Only this stage.", autocompletion=complete_stage)]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
