"""Which of its namespaces the operator may read now: one may be deleted with its Role, or be created later.

The other namespaces are not affected. Without a list of namespaces, the ClusterRole covers all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from kopf._cogs.structs.references import Insights

from distillchain_operator.cluster import ApiError, Cluster

CONNECT_RETRY_S = 2.0
RECHECK_S = 5.0  # well below the minute of refusals after which kopf would exit
UNREADABLE = (403, 404)  # no Role there (yet); the CRD is not installed (yet)

log = logging.getLogger(__name__)


async def list_chains(cluster: Cluster, namespaces: Sequence[str]) -> list[dict[str, Any]]:
    """The chains of all readable namespaces; of the whole cluster if no namespaces are given.

    Raises: ApiError if none is readable or the API server is unavailable.
    """
    return [
        chain
        for namespace in await readable_namespaces(cluster, namespaces)
        for chain in await cluster.list_chains(namespace)
    ]


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
    """Waits until the chains of a namespace can be listed, because kopf discovers the kind only when it starts."""
    while True:
        try:
            return await readable_namespaces(cluster, namespaces)
        except ApiError as error:
            log.warning("waiting for the API server and the CRD", extra={"status": error.status, "error": str(error)})
            await asyncio.sleep(CONNECT_RETRY_S)


async def follow_namespaces(cluster: Cluster, namespaces: Sequence[str], watched: Insights) -> None:
    """Keeps kopf watching exactly the readable namespaces; it would exit if one were refused for a minute."""
    logged: set[str | None] | None = None
    while True:
        readable = await _readable_now(cluster, namespaces)
        # Compared with what was logged, not with kopf's set, which kopf may have filled before the first check.
        if readable is not None and readable != logged:
            logged = readable
            works_in = ",".join(name for name in namespaces if name in readable)
            refused = ",".join(name for name in namespaces if name not in readable)
            level = logging.WARNING if refused else logging.INFO
            log.log(level, "readable namespaces changed", extra={"namespaces": works_in, "refused": refused})
        if readable is not None and readable != watched.namespaces:
            # kopf waits for this condition and adjusts its watches; a restart is not needed.
            async with watched.revised:
                watched.namespaces.clear()
                watched.namespaces.update(readable)  # type: ignore[arg-type]  # a NewType of str that kopf hides
                watched.revised.notify_all()
        await asyncio.sleep(RECHECK_S)


async def _readable_now(cluster: Cluster, namespaces: Sequence[str]) -> set[str | None] | None:
    """None while the API server is unavailable."""
    try:
        return await readable_namespaces(cluster, namespaces)
    except ApiError as error:
        return set() if error.status in UNREADABLE else None
