"""`distillchain validate`: checks every chain in files and folders, and reports all faults of all of them.

With a cluster, its API server checks the chains that are valid here, as if they were applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillchain_api.faults import BadDocument, Fault
from distillchain_api.plan_warnings import warnings_of
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.api_server.namespace_of import namespace_of
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.chain_files import (
    ChainDocument,
    FileContent,
    list_files,
    no_chain,
    note_skipped,
    parse,
    plan_of,
    read_file,
)
from distillchain_cli.arguments.choices import choice_of
from distillchain_cli.arguments.options import Filenames, Files, Overrides, Recursive, Storage, Verbose
from distillchain_cli.errors import EXIT_BAD_INPUT, BadInput, NotFound, Refused, Unauthorized
from distillchain_cli.output.printing import print_faults, print_message, print_result
from distillchain_cli.program import program_name

if TYPE_CHECKING:
    from distillchain_cli.api_server.cluster import Cluster

app = typer.Typer()

APPLIED = ("apiVersion", "kind", "spec")
APPLIED_METADATA = ("name", "namespace", "labels", "annotations")
"""What a user writes. `kubectl get -o yaml` adds fields that the API server refuses in an apply."""


class DryRun(StrEnum):
    """Where `validate` checks chains."""

    CLIENT = "client"
    SERVER = "server"


@app.command(epilog="Example: distillchain validate chain.yaml --set spec.task.maxLength=64")
@takes_access
def validate(
    access: Access,
    files: Files = None,
    filenames: Filenames = None,
    recursive: Recursive = False,
    dry_run: Annotated[
        DryRun,
        typer.Option(
            metavar="|".join(DryRun),
            parser=choice_of(DryRun),
            help="server: the API server checks the chains too, with its CRD, policies and webhooks.",
        ),
    ] = DryRun.CLIENT,
    storage: Storage = None,
    overrides: Overrides = None,
    _verbose: Verbose = False,
) -> None:
    """Check chains and summarise them. Changes nothing, and reads no data, model or store."""
    paths = [*(files or []), *(filenames or [])]
    if not paths:
        raise BadInput(f"got no file, expected at least one, such as: {program_name()} validate chain.yaml")
    # Without a cluster no option of it is looked at, so that a laptop without kubeconfig can validate.
    cluster = connect(access) if dry_run is DryRun.SERVER else None
    if not _validate_files(paths, storage=storage, overrides=overrides or (), cluster=cluster, recursive=recursive):
        raise typer.Exit(EXIT_BAD_INPUT)


def _validate_files(
    paths: Sequence[str],
    *,
    storage: str | None,
    overrides: Sequence[str],
    cluster: Cluster | None = None,
    recursive: bool = False,
) -> bool:
    """Prints a line for each valid chain to stdout, and the faults of the others to stderr.

    Args:
        cluster: whose API server checks the chains too.
        recursive: read subfolders too.
    Returns: whether all chains are valid. Raises: BadDocument when there is no chain at all.
    """
    contents, are_readable = _read(paths, recursive=recursive)
    chains = [chain for content in contents for chain in content.chains]
    # After an unreadable file this error would only distract: the chain may be in that file.
    if are_readable and not chains:
        raise no_chain([content.source for content in contents])
    # A list, not a generator: all() would stop at the first invalid chain and hide the faults of the others.
    results = [
        _validate(chain, storage=storage, overrides=overrides, cluster=cluster, is_only=len(content.chains) == 1)
        for content in contents
        for chain in content.chains
    ]
    return are_readable and all(results)


def _read(paths: Sequence[str], *, recursive: bool) -> tuple[list[FileContent], bool]:
    """The content of all files that can be read, and whether that was all of them."""
    contents: list[FileContent] = []
    are_readable = True
    for path in paths:
        try:
            files = list_files(path, recursive=recursive)
        except BadDocument as error:
            print_faults(error)
            are_readable = False
            continue
        for file in files:
            try:
                content = read_file(file)
            except BadDocument as error:
                print_faults(error)
                are_readable = False
                continue
            note_skipped(content, print_message)
            contents.append(content)
    return contents, are_readable


def _validate(
    document: ChainDocument, *, storage: str | None, overrides: Sequence[str], cluster: Cluster | None, is_only: bool
) -> bool:
    """Prints the result for one chain. Faults name the chain too if its file has several."""
    source = document.source if is_only else f"{document.source}: {document.name}"
    try:
        chain = parse(document, storage=storage, overrides=overrides, source=source)
        planned = plan_of(chain, source=source)
        if cluster is not None:
            _check_on_server(document.content, source, cluster)
    except BadDocument as error:
        print_faults(error)
        return False
    stages = " -> ".join([chain.spec.teacher.model, *(stage.name for stage in planned.students)])
    where = "valid, also for the API server" if cluster is not None else "valid"
    # The verdict, which trains nothing, is not counted.
    evidence = f"; evidence: {len(planned.evidence) - 1} more Jobs" if planned.evidence else ""
    print_result(f"{document.source}: {where}: DistillationChain {chain.name}, {stages}{evidence}")
    for sentence in warnings_of(planned):
        print_message(f"{source}: warning: {sentence}")
    return True


def _check_on_server(content: dict[str, Any], source: str, cluster: Cluster) -> None:
    """Raises: BadDocument with the API server's message when it refuses the chain."""
    metadata = {name: value for name, value in content["metadata"].items() if name in APPLIED_METADATA}
    metadata["namespace"] = namespace_of(metadata, source, cluster)
    try:
        cluster.dry_run_chain({name: content[name] for name in APPLIED} | {"metadata": metadata})
    except Unauthorized:
        raise  # no fault of the file
    except (Refused, NotFound) as error:
        raise BadDocument(source, [Fault("", str(error))]) from error
