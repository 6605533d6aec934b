"""Arguments and options that several commands share: one name, one meaning, one help text."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Annotated

import typer

from distillchain_cli.completion import complete_chain, complete_context, complete_namespace, complete_stage

log = logging.getLogger("distillchain_cli")


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def be_verbose(value: bool) -> bool:
    """Callback of --verbose."""
    if value:
        log.setLevel(logging.DEBUG)
    return value


File = Annotated[str, typer.Argument(metavar="FILE", help="A DistillationChain in YAML, or - for stdin.")]
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
        "--output", "-o", metavar="|".join(Output), help="How the result is printed; wide: more columns, nothing cut."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", callback=be_verbose, help="Say more; show the traceback of a failure.")
]
Stage = Annotated[str | None, typer.Option(metavar="STAGE", help="Only this stage.", autocompletion=complete_stage)]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAMESPACE",
        help="Namespace; empty: the one of the kubeconfig's context.",
        autocompletion=complete_namespace,
    ),
]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="In all namespaces.")]
Context = Annotated[
    str | None,
    typer.Option(
        metavar="CONTEXT", help="Context of the kubeconfig; empty: the current one.", autocompletion=complete_context
    ),
]
Kubeconfig = Annotated[str | None, typer.Option(metavar="FILE", help="Empty: $KUBECONFIG, else ~/.kube/config.")]
