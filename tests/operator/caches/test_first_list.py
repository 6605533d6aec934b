"""What the operator knows after the first list of chains."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from chain_builders import CHAIN_UID, a_document, a_plan
from deciding import committed_status, decide
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.watch.first_list import note_finished


def stored(name: str, status: ChainStatus, *, generation: int = 1) -> dict[str, Any]:
    document = a_document(name)
    document["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID, "generation": generation}
    return document | {"status": status.to_document()}


class Listed:
    """A Cluster with these chains, which may fail after them."""

    def __init__(self, *chains: dict[str, Any], error: ApiError | None = None) -> None:
        self.chains, self.error = chains, error

    async def list_chains(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        for chain in self.chains:
            yield chain
        if self.error is not None:
            raise self.error


async def test_chains_that_have_succeeded_are_known_from_the_list_and_others_are_not():
    done = committed_status(a_plan(), "mini", "tiny")
    chains = stored("done", done), stored("edited", done, generation=2), stored("runs", decide(a_plan()).status)
    finished, metrics = FinishedChains(), Metrics()

    await note_finished(
        cast("Cluster", Listed(*chains)), [None], finished=finished, metrics=metrics, neighbours=Neighbours()
    )

    assert [name for name in ("done", "edited", "runs") if ChainKey("ml", name) in finished] == ["done"]
    succeeded = {"namespace": "ml", "phase": "Succeeded"}
    assert metrics.registry.get_sample_value("distillchain_chains", succeeded) == 1


async def test_a_list_that_breaks_off_leaves_the_other_chains_to_be_read():
    done = stored("done", committed_status(a_plan(), "mini", "tiny"))
    cluster = cast("Cluster", Listed(done, error=ApiError(410, "the continue parameter is too old")))
    finished = FinishedChains()

    await note_finished(cluster, [None], finished=finished, metrics=Metrics(), neighbours=Neighbours())

    assert ChainKey("ml", "done") in finished
