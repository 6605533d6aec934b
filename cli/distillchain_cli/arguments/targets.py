"""FILE|NAME: an argument that names a file is a chain file; any other is the name of a chain on the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.resource.status import ChainStatus
from distillchain_cli.arguments.chain_files import EXTENSIONS, STDIN, Note, read_chain
from distillchain_cli.arguments.overrides import parse_storage
from distillchain_cli.errors import BadInput

FetchChain = Callable[[str], dict[str, Any]]
"""Returns the chain with a name as the cluster holds it."""


def read_target(
    target: str, *, storage: str | None, overrides: Sequence[str], fetch_chain: FetchChain, note: Note
) -> tuple[DistillationChain, ChainStatus]:
    """A chain and its status, which is empty for a file.

    Args:
        storage: URI of the store to use instead of the chain's.
        note: receives a line for each document of another kind in the file.
    Raises: BadDocument, BadInput, and whatever `fetch_chain` raises.
    """
    if _is_file(target):
        return read_chain(target, overrides=overrides, storage=storage, note=note), ChainStatus()
    # A mistyped path would otherwise be looked up on the cluster, and reported as a missing chain or kubeconfig.
    if "/" in target or target.endswith(EXTENSIONS):
        raise BadInput(f"{target}: there is no such file; expected a chain file, or the name of a chain on the cluster")
    if overrides:
        raise BadInput("--set: expected with a chain file only; a chain on the cluster is used as it is there")
    from distillchain_cli.api_server.chains import status_of

    # Before the cluster is asked, so that a bad option is reported even without access.
    address = parse_storage(storage, Path.cwd()) if storage is not None else None
    document = fetch_chain(target)
    chain = parse_chain(document, source=target, from_cluster=True)
    if address is not None:
        chain = chain.model_copy(update={"spec": chain.spec.model_copy(update={"storage": address})})
    return chain, status_of(document)


def _is_file(target: str) -> bool:
    """Whether to read files. A folder counts only if it is spelt as a path, because chains have names like folders."""
    if target == STDIN or Path(target).is_file():
        return True
    return Path(target).is_dir() and ("/" in target or target in (".", ".."))
