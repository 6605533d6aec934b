"""`distillchain delete`: deletes chains on a cluster. Their checkpoints stay in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distillchain_api.faults import BadDocument, Fault
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.api_server.namespace_of import namespace_of
from distillchain_cli.arguments.chain_files import FileContent, list_files, no_chain, read_file
from distillchain_cli.errors import BadInput, NotFound, RunFailed

POLL_S = 0.5


def select_chains(
    cluster: Cluster,
    names: Sequence[str],
    *,
    files: Sequence[FileContent],
    selector: str | None,
    everything: bool,
    ignore_not_found: bool,
) -> list[dict[str, Any]]:
    """The chains with these names, of these files, with these labels, or all of the namespace.

    Raises: BadInput when not exactly one of the four is given; NotFound; BadDocument.
    """
    if bool(names) + bool(files) + (selector is not None) + everything != 1:
        raise BadInput("expected names of chains, --filename, --selector or --all, and only one of them")
    if selector is not None or everything:
        return cluster.list_chains(selector=selector)
    named = [(cluster.namespace, name) for name in names]
    named += [address for file in files for address in _addresses(file, cluster)]
    chains = []
    for namespace, name in named:
        try:
            chains.append(cluster.fetch_chain(name, namespace=namespace))
        except NotFound:
            if not ignore_not_found:
                raise
    return chains


def read_files(paths: Sequence[str], *, recursive: bool) -> list[FileContent]:
    """The content of files and folders. Raises: BadDocument when one cannot be read, or none has a chain."""
    contents = [read_file(file) for path in paths for file in list_files(path, recursive=recursive)]
    if contents and not any(content.chains for content in contents):
        raise no_chain([content.source for content in contents])
    return contents


def _addresses(file: FileContent, cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Namespaces and names of the chains in a file. The rest of them is not checked: invalid chains are deleted too."""
    for chain in file.chains:
        if not chain.has_name:
            raise BadDocument(chain.source, [Fault("metadata.name", "missing, expected the name of a chain; add it")])
        yield namespace_of(chain.content["metadata"], chain.source, cluster), chain.name


def delete_chains(
    cluster: Cluster,
    chains: Sequence[dict[str, Any]],
    *,
    wait_s: float | None,
    deleted: Callable[[dict[str, Any]], None],
) -> None:
    """Deletes the chains with these UIDs and, in the background, their Jobs.

    Args:
        wait_s: how long to wait until the API server no longer has them; None: do not wait; 0: no limit.
        deleted: receives each chain once the API server has accepted its deletion.
    Raises: RunFailed when one of them still exists after `wait_s`.
    """
    for chain in chains:
        cluster.delete_chain(chain)
        deleted(chain)
    if wait_s is None:
        return
    deadline = time.monotonic() + wait_s
    for chain in chains:
        while _exists(cluster, chain):
            # A finalizer of another controller may take long, or for ever if that controller is gone.
            if wait_s and time.monotonic() > deadline:
                name = chain["metadata"]["name"]
                raise RunFailed(f"{name} still exists after {wait_s:.0f} s; see metadata.finalizers of the chain")
            time.sleep(POLL_S)


def _exists(cluster: Cluster, chain: dict[str, Any]) -> bool:
    try:
        found = cluster.fetch_chain(chain["metadata"]["name"], namespace=chain["metadata"]["namespace"])
    except NotFound:
        return False
    return bool(found["metadata"]["uid"] == chain["metadata"]["uid"])
