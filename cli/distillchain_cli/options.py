"""Arguments and options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Annotated

import typer

from distillchain_cli.choices import choice_of
from distillchain_cli.completion import complete_chain, complete_context, complete_namespace, complete_stage

log = logging.getLogger("distillchain_cli")


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


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
    list[str],
    typer.Argument(
        metavar="FILE",
        help="YAML or JSON files, folders of .yaml, .yml and .json files, or - for stdin. Other kinds are skipped.",
    ),
]
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
OutputFormat = Annotated[
    Output,
    typer.Option(
        "--output",
        "-o",
        metavar="|".join(Output),
        parser=choice_of(Output),
        help="Output format; wide has more columns and cuts nothing.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=set_verbose, help="Print more, and the traceback if the command fails."),
]
Stage = Annotated[str | None, typer.Option(metavar="STAGE", help="Only this stage.", autocompletion=complete_stage)]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAMESPACE",
        help="Namespace; default: the namespace of the kubeconfig's context.",
        autocompletion=complete_namespace,
    ),
]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]
Context = Annotated[
    str | None,
    typer.Option(
        metavar="CONTEXT",
        help="Context of the kubeconfig; default: the current context.",
        autocompletion=complete_context,
    ),
]
Kubeconfig = Annotated[
    str | None, typer.Option(metavar="FILE", help="Kubeconfig; default: $KUBECONFIG, or else ~/.kube/config.")
]
