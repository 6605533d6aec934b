"""Which of its namespaces the operator may read now: one may be deleted with its Role, or be created later.

The other namespaces are not affected. Without a list of namespaces, the ClusterRole covers all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from distillchain_operator.cluster import ApiError, Cluster

CONNECT_RETRY_S = 2.0
UNREADABLE = (403, 404)  # no Role there (yet); the CRD is not installed (yet)

log = logging.getLogger(__name__)


async def list_chain_metadata(cluster: Cluster, namespaces: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
    """The metadata of the chains in all readable namespaces; of the whole cluster if no namespaces are given.

    Raises: ApiError if none is readable or the API server is unavailable.
    """
    for namespace in await readable_namespaces(cluster, namespaces):
        async for metadata in cluster.list_chain_metadata(namespace):
            yield metadata


async def readable_namespaces(cluster: Cluster, namespaces: Sequence[str]) -> set[str | None]:
    """The namespaces whose chains may be listed; {None} if no namespaces are given.

    Raises: ApiError if none is readable or the API server is unavailable.
    """
    found: set[str | None] = set()
    refusals = []
    for namespace in namespaces or (None,):
        try:
            await cluster.check_chains(namespace)
            found.add(namespace)
        except ApiError as error:
            # Any other error says nothing about the namespace: the API server is away or overloaded.
            if error.status not in UNREADABLE:
                raise
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


async def wait_for_chains(cluster: Cluster, namespaces: Sequence[str]) -> set[str | None]:
    """Waits until the chains of a namespace can be listed."""
    while True:
        try:
            return await readable_namespaces(cluster, namespaces)
        except ApiError as error:
            log.warning("waiting for the API server and the CRD", extra={"status": error.status, "error": str(error)})
            await asyncio.sleep(CONNECT_RETRY_S)


async def readable_now(cluster: Cluster, namespaces: Sequence[str]) -> set[str | None] | None:
    """The readable namespaces, perhaps none; None while the API server is unavailable."""
    try:
        return await readable_namespaces(cluster, namespaces)
    except ApiError as error:
        return set() if error.status in UNREADABLE else None
