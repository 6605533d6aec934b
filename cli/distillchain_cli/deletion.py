"""`distillchain delete`: deletes chains on a cluster. Their checkpoints stay in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from distillchain_cli.cluster import Cluster
from distillchain_cli.errors import BadInput, NotFound, RunFailed

POLL_S = 0.5


def select_chains(
    cluster: Cluster, names: Sequence[str], *, selector: str | None, everything: bool, ignore_not_found: bool
) -> list[dict[str, Any]]:
    """The chains with these names, with these labels, or all of the namespace.

    Raises: BadInput when not exactly one of the three is given; NotFound.
    """
    if bool(names) + (selector is not None) + everything != 1:
        raise BadInput("expected names of chains, --selector or --all, and only one of them")
    if not names:
        return cluster.list_chains(selector=selector)
    chains = []
    for name in names:
        try:
            chains.append(cluster.fetch_chain(name))
        except NotFound:
            if not ignore_not_found:
                raise
    return chains


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
        found = cluster.fetch_chain(chain["metadata"]["name"])
    except NotFound:
        return False
    return bool(found["metadata"]["uid"] == chain["metadata"]["uid"])
