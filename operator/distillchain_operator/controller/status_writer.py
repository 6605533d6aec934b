"""Writes the status of a chain, and reports what has changed in it as Events and metrics."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from distillchain_api.resource.status import ChainStatus
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.known_chains import KnownChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller.events import Events
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.status.brief import BRIEF_S, is_brief
from distillchain_operator.status.chain_status import status_patch
from distillchain_operator.status.problems import STATUS_REFUSED, problem_events, with_problem
from distillchain_operator.status.transitions import transitions

log = logging.getLogger(__name__)

REFUSED_RETRY_S = 30.0  # no event says that a webhook was corrected


class StatusWriter:
    """Writes one status at a time.

    Args:
        chains: learns what was written.
        give_way: waits while something more urgent has to be done.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        events: Events,
        chains: KnownChains,
        metrics: Metrics,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
        give_way: Callable[[ChainKey], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._give_way = give_way
        self._events = events
        self._chains = chains
        self._metrics = metrics
        self._clock = clock
        self._monotonic = monotonic
        self._brief_since: dict[ChainKey, float] = {}  # brief news that is not written yet

    async def write(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, new: ChainStatus) -> float | None:
        """Writes the status; if the API server refuses it, the old one with the reason.

        Returns: after how many seconds to look again, because it was refused, or is news that may be over by then.
        Raises: ApiError 409 if the chain was edited since it was read; the queue retries with a fresh read.
        """
        if left_s := self._waits(key, old, new):
            return left_s
        # Most reconciles change nothing, and each write of a changed status causes another reconcile.
        if new == old:
            return None
        await self._give_way(key)
        try:
            await self._patch(document, key, new)
        except ApiError as error:
            if error.status == 404:
                return None  # deleted since it was read
            if not error.is_refusal:
                raise
            return await self._write_refused(document, key, old, error)
        await self._announce(document, key, old, new)
        return None

    def _waits(self, key: ChainKey, old: ChainStatus, new: ChainStatus) -> float:
        """For how many seconds a status is not written, because it only has brief news."""
        if not is_brief(old, new):
            self._brief_since.pop(key, None)
            return 0
        since = self._brief_since.setdefault(key, self._monotonic())
        return max(since + BRIEF_S - self._monotonic(), 0)

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._brief_since.pop(key, None)

    async def _write_refused(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, error: ApiError) -> float:
        log.warning("status refused", extra={"chain": str(key), "error": error.message})
        problem = f"the API server refused the status of this chain: {error.message}"
        status = self.with_problem(document, old, problem, reason=STATUS_REFUSED)
        if status != old:
            await self._patch(document, key, status)
            await self._announce(document, key, old, status)
        return REFUSED_RETRY_S

    async def _patch(self, document: dict[str, Any], key: ChainKey, status: ChainStatus) -> None:
        version = document["metadata"]["resourceVersion"]
        patch = status_patch(status)
        written = await self._cluster.patch_status(key.namespace, key.name, resource_version=version, status=patch)
        self._chains.note(key, written)

    async def _announce(self, document: dict[str, Any], key: ChainKey, old: ChainStatus, new: ChainStatus) -> None:
        # After the write: a reconcile that ended in a conflict is repeated and would count and report its changes
        # twice.
        self._metrics.changed(key, old, new)
        for event in [*transitions(old, new), *problem_events(old, new)]:
            log.info("chain event", extra={"chain": str(key), "reason": event.reason, "note": event.message})
            await self._events.send(document, event)

    def with_problem(
        self, document: dict[str, Any], status: ChainStatus, problem: str, *, reason: str, stalls: bool = True
    ) -> ChainStatus:
        """A status that says so in its conditions; see distillchain_operator.status.problems."""
        generation = document["metadata"]["generation"]
        return with_problem(status, problem, reason=reason, generation=generation, now=self._clock(), stalls=stalls)
