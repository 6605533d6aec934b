"""Commands that change chains on a cluster: delete, retry, suspend, resume.

Each command translates arguments and prints results. The work is done in other modules, which are imported inside the
functions because the Kubernetes client takes a second to load.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.choices import choice_of, limit
from distillchain_cli.arguments.completion import complete_chain, complete_stage
from distillchain_cli.arguments.options import Name, Recursive, Storage, Verbose
from distillchain_cli.errors import BadInput
from distillchain_cli.output.printing import interruptible, print_message, print_result

app = typer.Typer()


class DeletedFormat(StrEnum):
    """Formats of the list of deleted chains."""

    NAME = "name"


@app.command(epilog="Example: distillchain delete sst2-femto --no-wait")
@takes_access
def delete(
    access: Access,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Names of chains on the cluster.", autocompletion=complete_chain),
    ] = None,
    selector: Annotated[
        str | None, typer.Option("--selector", "-l", metavar="LABELS", help="Chains with these labels: team=nlp.")
    ] = None,
    filenames: Annotated[
        list[str] | None,
        typer.Option(
            "--filename", "-f", metavar="FILE", help="The chains of a file, a folder or - for stdin. May be repeated."
        ),
    ] = None,
    recursive: Recursive = False,
    everything: Annotated[bool, typer.Option("--all", help="All chains of the namespace.")] = False,
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="A chain that does not exist is no error.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until the API server has removed the chains.")
    ] = False,
    timeout: Annotated[
        int, typer.Option(metavar="DURATION", parser=limit, help="How long to wait, such as 2m; 0: no limit.")
    ] = 0,
    output: Annotated[
        DeletedFormat | None,
        typer.Option(
            "--output",
            "-o",
            metavar="name",
            parser=choice_of(DeletedFormat),
            help="name: print names only, for kubectl.",
        ),
    ] = None,
    _verbose: Verbose = False,
) -> None:
    """Delete chains on the cluster, with their Jobs and pods.

    What the chains have committed stays in their stores: a chain with the same spec uses it again.
    """
    from distillchain_cli.api_server.chains import resource_name
    from distillchain_cli.changes.deletion import delete_chains, read_files, select_chains

    def report(chain: dict[str, Any]) -> None:
        name = resource_name(chain)
        print_result(name if output is DeletedFormat.NAME else f"{name} deleted")

    files = read_files(filenames or [], recursive=recursive)
    cluster = connect(access)
    chains = select_chains(
        cluster,
        names or [],
        files=files,
        selector=selector,
        everything=everything,
        ignore_not_found=ignore_not_found,
    )
    with interruptible():
        delete_chains(cluster, chains, wait_s=None if no_wait else timeout, deleted=report)
    if not chains:
        print_message(f"there are no such chains in namespace {cluster.namespace}")


@app.command(epilog="Example: distillchain retry sst2-femto --stage tiny")
@takes_access
def retry(
    access: Access,
    name: Name,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE", help="Stage to retry; default: the stage that failed.", autocompletion=complete_stage
        ),
    ] = None,
    from_stage: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="Run this stage again and every one that needs it.",
            autocompletion=complete_stage,
        ),
    ] = None,
    discard: Annotated[
        bool,
        typer.Option(
            "--discard",
            help="With --from: also committed stages. Moves manifests aside in the store and deletes saved states.",
        ),
    ] = False,
    logits: Annotated[
        bool,
        typer.Option(
            "--logits",
            help="With --discard: also delete the stored outputs of teachers that these stages learned from.",
        ),
    ] = False,
    storage: Storage = None,
    _verbose: Verbose = False,
) -> None:
    """Retry the failed stage of a chain, or run a chain again from one of its stages.

    Sets the annotation distillchain.io/retry, and the operator creates another Job for the stage. A committed stage is
    trained again only with --discard, which needs credentials of the store. Its checkpoint stays in the store until gc
    deletes it.
    """
    from distillchain_cli.changes.retry import now
    from distillchain_cli.changes.retry import retry as retry_stage
    from distillchain_cli.changes.train_again import train_again

    if from_stage is None:
        options = {"--discard": discard, "--logits": logits, "--storage": storage is not None}
        if stated := [option for option, is_stated in options.items() if is_stated]:
            raise BadInput(f"{stated[0]}: expected together with --from")
        print_result(retry_stage(connect(access), name, stage))
        return
    if stage is not None:
        raise BadInput("--stage: expected alone or --from instead; --from retries its stage too")
    if (storage is not None or logits) and not discard:
        option = "--logits" if logits else "--storage"
        raise BadInput(f"{option}: expected together with --discard; nothing else uses the store")
    print_result(
        train_again(connect(access), name, from_stage, discard=discard, logits=logits, storage=storage, now=now)
    )


@app.command(epilog="Example: distillchain suspend sst2-femto")
@takes_access
def suspend(
    access: Access,
    name: Name,
    _verbose: Verbose = False,
) -> None:
    """Stop a chain and save its state.

    The running stage saves its state and stops, and no other stage starts. Sets only spec.suspend. If the chain is
    managed from Git, Argo CD or Flux resets the field: edit it in Git instead.
    """
    from distillchain_cli.changes.suspend import set_suspend

    print_result(set_suspend(connect(access), name, suspend=True))


@app.command(epilog="Example: distillchain resume sst2-femto")
@takes_access
def resume(
    access: Access,
    name: Name,
    _verbose: Verbose = False,
) -> None:
    """Let a suspended chain continue.

    Its stage continues from the saved state. Sets only spec.suspend. If the chain is managed from Git, Argo CD or Flux
    resets the field: edit it in Git instead.
    """
    from distillchain_cli.changes.suspend import set_suspend

    print_result(set_suspend(connect(access), name, suspend=False))
