"""`distillchain gc`: what nothing in a store needs, and its deletion on request."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distillchain_api.failures import StageError
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.resource.storage import Storage as StorageSpec
from distillchain_api.values import DURATION, duration_seconds
from distillchain_cli.api_server.access import Access
from distillchain_cli.api_server.connection import connect
from distillchain_cli.arguments.access_options import takes_access
from distillchain_cli.arguments.options import Storage, Verbose
from distillchain_cli.arguments.overrides import parse_storage
from distillchain_cli.arguments.targets import read_target
from distillchain_cli.errors import BadInput, RunFailed
from distillchain_cli.output.columns import WIDTH, Column, age, format_columns, size
from distillchain_cli.output.output import Output, OutputFormat
from distillchain_cli.output.printing import is_document, print_document, print_message, print_result
from distillchain_cli.stores import open_chain_store, require_folder

if TYPE_CHECKING:
    from distillchain_store.garbage import Found, Garbage

app = typer.Typer()


@app.command(epilog="Example: distillchain gc chain.yaml --older-than 48h --delete")
@takes_access
def gc(
    access: Access,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE|NAME", help="Chains that use the store: chain files, or names on the cluster."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is found; else it is only listed.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="DURATION", help="Keep stages and passes that were written to within this time.")
    ] = "24h",
    logits: Annotated[
        bool, typer.Option("--logits", help="Also stored outputs of teachers; later stages compute them again.")
    ] = False,
    states: Annotated[
        bool,
        typer.Option("--states", help="Also saved states of stages that no given chain has; name all chains."),
    ] = False,
    storage: Storage = None,
    output: OutputFormat = Output.TABLE,
    _verbose: Verbose = False,
) -> None:
    """List what nothing in a store needs: attempts that were never committed, states of committed stages, and the like.

    Changes nothing without --delete. Committed checkpoints, their results and reports are never deleted, and a stage
    that was written to recently is left alone.
    """
    if not re.fullmatch(DURATION, older_than):
        raise BadInput(f"--older-than: got {older_than}, expected a duration such as 24h or 1h30m")
    chains = [
        read_target(
            target,
            storage=None,
            overrides=(),
            fetch_chain=lambda name: connect(access).fetch_chain(name),
            note=print_message,
        )[0]
        for target in targets or ()
    ]
    if states and not chains:
        raise BadInput("--states: expected the chains that use the store, or every saved state would be deleted")
    address = _address(chains, storage)
    # The folder of a chain does not exist before it runs, but one that is named does.
    if storage is not None:
        require_folder(address.uri)
    needed: set[str] = {stage.digest for chain in chains for stage in build_plan(chain).vertices}
    _collect(
        address,
        needed if states else None,
        written_before_s=time.time() - duration_seconds(older_than),
        logits=logits,
        delete=delete,
        output=output,
    )


def _address(chains: Sequence[DistillationChain], storage: str | None) -> StorageSpec:
    """The one store of all chains. Raises: BadInput when there is none, or more than one."""
    from pathlib import Path

    if storage is not None:
        return parse_storage(storage, Path.cwd())
    # Buckets of two servers can have the same name.
    stores = {(each.endpoint_url, each.uri): each for each in (chain.spec.storage for chain in chains)}
    if not stores:
        raise BadInput("expected a chain, or --storage with the URI of the store")
    if len(stores) > 1:
        listed = ", ".join(f"{uri} at {server}" if server else uri for server, uri in stores)
        raise BadInput(f"the chains use {len(stores)} stores ({listed}); name chains of one store")
    return next(iter(stores.values()))


def _collect(
    address: StorageSpec,
    needed: set[str] | None,
    *,
    written_before_s: float,
    logits: bool,
    delete: bool,
    output: Output,
) -> None:
    from distillchain_store.garbage import delete_garbage, find_garbage

    try:
        store = open_chain_store(address)
        found = find_garbage(store, written_before_s=written_before_s, with_logits=logits, needed_stages=needed)
        deleted = [
            garbage
            for garbage in (found.garbage if delete else [])
            if delete_garbage(store, garbage, written_before_s=written_before_s)
        ]
    except StageError as error:
        raise RunFailed(str(error)) from error
    if is_document(output):
        print_document(_document(store.uri, found, deleted, delete=delete), output)
    elif found.garbage:
        print_result(_table(found.garbage, width=None if output == Output.WIDE else WIDTH))
    for sentence in found.kept:
        print_message(f"left alone: {sentence}")
    print_message(_summary(store.uri, found, deleted, delete=delete, logits=logits))


def _document(uri: str, found: Found, deleted: Sequence[Garbage], *, delete: bool) -> dict[str, Any]:
    return {
        "storage": uri,
        "deleted": delete,
        "garbage": [
            {
                "folder": garbage.folder,
                "why": garbage.why,
                "objects": [item.key for item in garbage.objects],
                "unfinishedWrites": [write.handle for write in garbage.writes],
                "sizeBytes": garbage.size_bytes,
            }
            for garbage in (deleted if delete else found.garbage)
        ],
        "leftAlone": found.kept,
        "logitsBytes": sum(item.size_bytes for item in found.logits),
    }


def _table(found: Sequence[Garbage], *, width: int | None) -> str:
    columns = [Column("FOLDER"), Column("OBJECTS", right=True), Column("SIZE", right=True), Column("AGE", right=True),
               Column("WHY")]  # fmt: skip
    now_s = time.time()
    rows = [
        [
            _short(garbage.folder),
            str(len(garbage.objects) + len(garbage.writes)),
            size(garbage.size_bytes),
            age(now_s - garbage.modified_s),
            garbage.why,
        ]
        for garbage in sorted(found, key=lambda each: -each.size_bytes)
    ]
    return format_columns(columns, rows, width=width)


def _short(folder: str) -> str:
    """A folder with digests of twelve characters, as everywhere else."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", folder)


def _summary(uri: str, found: Found, deleted: Sequence[Garbage], *, delete: bool, logits: bool) -> str:
    listed = deleted if delete else found.garbage
    objects = sum(len(garbage.objects) + len(garbage.writes) for garbage in listed)
    count = f"{objects} object{'' if objects == 1 else 's'}, {size(sum(garbage.size_bytes for garbage in listed))}"
    if delete:
        text = f"deleted from {uri}: {count}"
    elif found.garbage:
        text = f"in {uri}, nothing needs {count}; to delete them, run the command again with --delete"
    else:
        looked_at = "everything that is not left alone" if found.kept else "everything"
        return f"in {uri}, {looked_at} is needed{_logits_hint(found, logits=logits)}"
    return text + _logits_hint(found, logits=logits)


def _logits_hint(found: Found, *, logits: bool) -> str:
    if logits or not found.logits:
        return ""
    return f" (outputs of teachers take {size(sum(item.size_bytes for item in found.logits))} more; see --logits)"
