"""Asks the operator to run stages again, by an annotation of the chain (distillchain_api.retry_request)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from distillchain_api.retry_request import new_retry, open_retry
from distillchain_cli.api_server.chains import status_of
from distillchain_cli.api_server.cluster import Cluster
from distillchain_cli.errors import Conflict

TRIES = 10  # the operator writes the status of a chain that runs every few seconds


def request_run(
    cluster: Cluster, chain: dict[str, Any], stages: Collection[str], *, token: str, committed_too: bool = False
) -> None:
    """Asks for these stages, and again for those of a request that the operator has not handled yet.

    Args:
        chain: as it was read; it is read again if it has changed since.
        token: makes two requests for the same stages different.
        committed_too: committed stages run again as well.
    Raises: Conflict when the chain was deleted and recreated since it was read, or changes all the time.
    """
    name, uid = chain["metadata"]["name"], chain["metadata"]["uid"]
    for tries_left in reversed(range(TRIES)):
        # The annotation holds one request, and what it replaces would be lost.
        earlier = open_retry(chain["metadata"].get("annotations"), status_of(chain).handled_retry)
        both = committed_too or earlier.committed_too
        try:
            cluster.annotate_chain(chain, new_retry({*earlier.stages, *stages}, token=token, committed_too=both))
        except Conflict:
            chain = cluster.fetch_chain(name)
            if chain["metadata"]["uid"] != uid or not tries_left:
                raise
        else:
            return
