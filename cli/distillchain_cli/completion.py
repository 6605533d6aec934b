"""What a shell offers at the Tab key: names from the cluster and contexts from the kubeconfig.

A cluster that is slow, away or says no offers nothing and says nothing: a line being typed is no place for an error.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout, suppress
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # else only an option that guesses

from distillchain_cli.program import COMPLETE_VARIABLE, PROGRAM

TIMEOUT_S = 2  # of a request: who pressed Tab waits no longer
NO_FILES = ":4"  # cobra's ShellCompDirectiveNoFileComp


class Shell(StrEnum):
    """Shells that can ask."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="|".join(Shell), help="Shell that is to complete.")],
) -> None:
    """Print the completion script of a shell.

    It completes commands, options, and the names of chains and stages on the cluster.

    bash: source <(distillchain completion bash); zsh: the same, after compinit; fish: distillchain completion fish |
    source. Put it into the shell's start-up file to keep it. `kubectl distillchain` completes by itself where kubectl's
    own completion is loaded.
    """
    print(get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell.value))  # noqa: T201


def complete_chain(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the chains in the namespace typed so far."""
    return _offer(incomplete, lambda: (chain["metadata"]["name"] for chain in _cluster(context).list_chains()))


def complete_stage(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the stages of the chain typed so far."""

    def stages() -> Iterable[str]:
        from distillchain_cli.chains import stage_names

        # An option without its value ends the parser before it hands out arguments.
        name = context.params.get("name") or context.args[0]
        return stage_names(_cluster(context).fetch_chain(name))

    return _offer(incomplete, stages)


def complete_namespace(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the cluster's namespaces, where the user may list them."""
    return _offer(incomplete, lambda: _cluster(context).namespaces())


def complete_context(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the kubeconfig's contexts."""

    def contexts() -> Iterable[str]:
        from kubernetes import config

        found, _ = config.list_kube_config_contexts(config_file=context.params.get("kubeconfig"))
        return [entry["name"] for entry in found]

    return _offer(incomplete, contexts)


def _offer(incomplete: str, names: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]
    except Exception:  # whatever it is, it is not said here
        return []


def _cluster(context: typer.Context) -> Any:
    from distillchain_cli.cluster import Cluster

    given = {name: context.params.get(name) for name in ("kubeconfig", "context", "namespace")}
    return Cluster(**given, timeout_s=TIMEOUT_S)


def kubectl_complete() -> None:
    """The executable `kubectl_complete-distillchain`: kubectl calls it with the words after `kubectl distillchain`.

    It answers one completion a line, with its description behind a tab, as typer does for fish; the last line tells
    the shell to offer no files, unless files are what belongs there.
    """
    from distillchain_cli.main import build_command

    words = sys.argv[1:] or [""]
    os.environ[COMPLETE_VARIABLE] = "complete_fish"
    os.environ["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    os.environ["_TYPER_COMPLETE_ARGS"] = " ".join([PROGRAM, *map(shlex.quote, words[:-1]), words[-1]])
    answer = io.StringIO()
    with redirect_stdout(answer), redirect_stderr(io.StringIO()), suppress(SystemExit):
        build_command()(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
    if lines := answer.getvalue().strip():
        print(lines, NO_FILES, sep="\n")  # noqa: T201
