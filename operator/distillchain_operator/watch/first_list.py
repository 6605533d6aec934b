"""Which chains have succeeded when the operator starts, from a list of all of them: none has to be read by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from distillchain_api.resource.status import ChainStatus
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.finished import FinishedChains, has_succeeded
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.metrics.operator_metrics import Metrics

log = logging.getLogger(__name__)


async def note_finished(
    cluster: Cluster,
    namespaces: Iterable[str | None],
    *,
    finished: FinishedChains,
    metrics: Metrics,
    neighbours: Neighbours,
) -> None:
    """Notes the chains, above all those that have succeeded.

    Those that cannot be listed are reconciled, which finds out the same.
    """
    succeeded = ChainStatus(phase="Succeeded")  # metrics need no more of them
    for namespace in list(namespaces):
        try:
            async for document in cluster.list_chains(namespace):
                neighbours.note_stored(document)
                if has_succeeded(document):
                    metadata = document["metadata"]
                    finished.note(document)
                    metrics.reconciled(ChainKey(metadata["namespace"], metadata["name"]), succeeded)
            neighbours.note_listed(namespace)
        except ApiError as error:
            fields = {"namespace": namespace or "all", "error": error.message}
            log.warning("chains not listed, each will be read", extra=fields)
