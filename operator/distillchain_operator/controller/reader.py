"""What a look at a chain reads: what memory and the caches of the watches have, or everything live.

Memory and caches may lag behind, so the controller repeats a look with live reads before it creates or deletes a Job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.children import Children
from distillchain_operator.caches.known_chains import KnownChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.jobs.observed import Observed
from distillchain_operator.jobs.parsing import observe, parts_of
from distillchain_operator.settings import Settings

KNOWN_PARTS_S = 60.0  # nothing reports that the Service or NetworkPolicy of a group was deleted

log = logging.getLogger(__name__)


class Sight(NamedTuple):
    """A chain with its Jobs and pods."""

    document: dict[str, Any]
    observed: Observed


class _Parts(NamedTuple):
    """The Services and NetworkPolicies of a chain, as `Observed.parts` has them, and when they were read."""

    found: frozenset[tuple[str, str]]
    beside: Observed
    read_at: float


class Reader:
    """Reads chains, their Jobs and pods.

    Args:
        unreadable: called with each namespace in which a chain may not be read.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        *,
        chains: KnownChains,
        children: Children,
        monotonic: Callable[[], float],
        unreadable: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._cluster, self._settings = cluster, settings
        self._chains, self._children = chains, children
        self._monotonic, self._unreadable = monotonic, unreadable
        self._parts: dict[ChainKey, _Parts] = {}

    def forget(self, key: ChainKey) -> None:
        """The chain was deleted."""
        self._parts.pop(key, None)

    async def find_chain(self, key: ChainKey) -> dict[str, Any] | None:
        """The chain, also from memory; None if it was deleted."""
        if not key.name:  # the API server would answer with the list of all chains
            return None
        document = self._chains.get(key)
        return await self._read_chain(key) if document is None else document

    async def find_children(self, document: dict[str, Any], key: ChainKey) -> Observed | None:
        """The Jobs and pods of a chain from the caches; None if they do not have all."""
        observed = self.known_children(document, key)
        return None if observed is None else await self._with_parts(observed, key)

    def known_children(self, document: dict[str, Any], key: ChainKey) -> Observed | None:
        """The same without their Services and NetworkPolicies, which takes no request."""
        return self._children.observed(key, document["metadata"]["uid"])

    async def read(self, key: ChainKey) -> Sight | None:
        """A chain with its Jobs and pods, all read live; None if it was deleted."""
        # Jobs before pods: if a Job counts a pod as ended, the pod's end is seen too. The chain is last: if a Job was
        # deleted because its stage is committed, whoever did it, the status that says so is seen too.
        jobs = await self._cluster.list_jobs(key.namespace, key.name)
        pods = await self._cluster.list_pods(key.namespace, key.name)
        self._children.load(key, jobs=jobs, pods=pods)
        self._parts.pop(key, None)
        document = await self._read_chain(key)
        if document is None:
            return None
        observed = observe(chain_uid=document["metadata"]["uid"], jobs=jobs.items, pods=pods.items)
        return Sight(document, await self._with_parts(observed, key))

    async def _read_chain(self, key: ChainKey) -> dict[str, Any] | None:
        try:
            document = await self._cluster.get_chain(key.namespace, key.name)
        except ApiError as error:
            if error.status != 403 or not self._settings.namespaces:
                raise
            # The namespace was deleted, and the Role in it first. If it comes back, so do its chains (namespaces.py).
            self._unreadable(key.namespace)
            log.info("chain may not be read", extra={"chain": str(key), "error": error.message})
            return None
        # After `kubectl delete --cascade=orphan`, its Jobs have to go on without it.
        if document is None or "orphan" in document["metadata"].get("finalizers", []):
            return None
        self._chains.note(key, document)
        return document

    async def _with_parts(self, observed: Observed, key: ChainKey) -> Observed:
        groups = [job.uid for job in observed.jobs if job.is_open_group]
        # A chain whose stages run on one node costs no further request.
        if not groups:
            return observed
        kinds = ["Service", *(["NetworkPolicy"] if self._settings.network_policies else [])]
        known, now = self._parts.get(key), self._monotonic()
        needed = {(kind, uid) for kind in kinds for uid in groups}
        is_old = known is None or known.beside != observed or now - known.read_at >= KNOWN_PARTS_S
        if known is None or is_old or not needed <= known.found:
            known = self._parts[key] = _Parts(await self._list_parts(key), observed, now)
        return replace(observed, parts=known.found)

    async def _list_parts(self, key: ChainKey) -> frozenset[tuple[str, str]]:
        parts = parts_of(await self._cluster.list_services(key.namespace, key.name), kind="Service")
        if self._settings.network_policies:
            policies = await self._cluster.list_network_policies(key.namespace, key.name)
            parts |= parts_of(policies, kind="NetworkPolicy")
        return parts
