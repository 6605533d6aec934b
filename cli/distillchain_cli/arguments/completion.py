"""Completion at the Tab key: names from the cluster, and contexts from the kubeconfig.

When the cluster is slow, unreachable or refuses, there are no candidates and no message, because a message would land
in the middle of the line that the user types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # the public way guesses the shell

from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.choices import choice_of
from distillchain_cli.program import COMPLETE_VARIABLE, PROGRAM

TIMEOUT_S = 2  # of each request; a user who pressed Tab does not wait longer


class Shell(StrEnum):
    """Shells with a completion script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[
        Shell, typer.Argument(metavar="|".join(Shell), parser=choice_of(Shell), help="The shell to complete in.")
    ],
) -> None:
    """Print the completion script of a shell.

    It completes commands, options, and the names of chains and stages on the cluster.

    bash: source <(distillchain completion bash); zsh: the same, after compinit; fish: distillchain completion fish |
    source. Add the line to the shell's start-up file to keep it. `kubectl distillchain` needs no script if kubectl's
    own completion is loaded.
    """
    print(get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell.value))  # noqa: T201


def complete_chain(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the chains in the namespace on the command line."""
    return _candidates(incomplete, lambda: (chain["metadata"]["name"] for chain in _cluster(context).list_chains()))


def complete_stage(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the stages of the chain on the command line."""

    def stages() -> Iterable[str]:
        from distillchain_cli.api_server.chains import stage_names

        # An option without its value stops the parser before it assigns arguments to parameters.
        name = context.params.get("name") or context.args[0]
        return stage_names(_cluster(context).fetch_chain(name))

    return _candidates(incomplete, stages)


def complete_namespace(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the cluster's namespaces, if the user may list them."""
    return _candidates(incomplete, lambda: _cluster(context).namespaces())


def complete_context(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the kubeconfig's contexts."""

    def contexts() -> Iterable[str]:
        from distillchain_cli.api_server.kubeconfig import context_names

        return context_names(context.params.get("kubeconfig"))

    return _candidates(incomplete, contexts)


def _candidates(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except Exception:  # a shell has no place for an error message here
        return []


def _cluster(context: typer.Context) -> Any:
    given = {field.name: context.params.get(field.name) for field in fields(Access)}
    # An option that is not complete yet has no value.
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return connect(replace(Access(**known), request_timeout=TIMEOUT_S))
