"""The options that all cluster commands share, as kubectl has them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from distillchain_cli.api_server.access import Access
from distillchain_cli.arguments.choices import limit
from distillchain_cli.arguments.completion import complete_context, complete_namespace

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
Context = Annotated[
    str | None,
    typer.Option(
        metavar="CONTEXT",
        help="Context of the kubeconfig; default: the current context.",
        autocompletion=complete_context,
    ),
]
Kubeconfig = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Kubeconfig; default: $KUBECONFIG, or else ~/.kube/config, or else the service account of the pod.",
    ),
]
RequestTimeout = Annotated[
    int,
    typer.Option(
        "--request-timeout",
        metavar="DURATION",
        parser=limit,
        help="Limit of one request, such as 30s; 0: none. Watches and logs have no limit.",
    ),
]
AsUser = Annotated[
    str | None, typer.Option("--as", metavar="USER", help="Act as this user or system:serviceaccount:NAMESPACE:NAME.")
]
AsGroups = Annotated[
    list[str],
    typer.Option("--as-group", metavar="GROUP", help="With --as: act as a member of this group. May be repeated."),
]
OPTIONS = {
    "namespace": Namespace,
    "context": Context,
    "kubeconfig": Kubeconfig,
    "request_timeout": RequestTimeout,
    "as_user": AsUser,
    "as_groups": AsGroups,
}
"""The option of each field of `Access`."""


def takes_access(function: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `Access` in place of its parameter `access`.

    typer reads options from a signature and knows no groups of options. Without this, each command repeats all of them.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "access"]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=OPTIONS[field.name]
        )
        for field in fields(Access)
    ]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {field.name: values.pop(field.name) for field in fields(Access)}
        function(access=Access(**given), **values)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    command.__dict__["__signature__"] = signature.replace(parameters=[*keyword_only, *options])
    return command
