"""Leader election: of several operators, the holder of one Lease works and the others are on standby.

The rules are those of client-go's tools/leaderelection. The clocks of two machines are never compared: a lease has
expired when its reader has not seen it change for its duration, by the reader's own clock, and its holder stops working
some seconds before that.

A process that was frozen can wake up and act for a moment beside its successor, as with any lease. That does no harm: a
Job's name is derived from chain and digest, and a status is written only if it has not changed since it was read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from distillchain_operator.api_server.cluster import COMPONENT, ApiError, Cluster

log = logging.getLogger(__name__)


class LeadershipLost(Exception):
    """Another operator holds the lease, or it could not be renewed in time; this operator must stop at once."""


@dataclass(frozen=True)
class Timing:
    """Client-go's defaults. The holder stops `duration_s - deadline_s` before others may take over."""

    duration_s: int = 15
    deadline_s: float = 10.0
    retry_s: float = 2.0


def new_identity() -> str:
    """A name for this process that no other process ever has: the pod's name and UID, and random characters."""
    place = [os.environ.get("HOSTNAME", COMPONENT), os.environ.get("POD_UID", "")]
    return "_".join([*filter(None, place), uuid.uuid4().hex[:8]])


def is_of_same_pod(holder: str, identity: str) -> bool:
    """Whether an earlier process of this pod holds the lease. It has ended, or the container had not started again."""
    # A name alone is not enough: outside of pods, several processes have the name of one machine.
    pod = identity.rpartition("_")[0]
    return "_" in pod and holder.rpartition("_")[0] == pod


class Election:
    """One candidate for one Lease: call `acquire`, then `keep` until the end, then `release`.

    Attributes:
        is_candidate: the lease could be read, so this candidate leads or can take over.
        leads: this candidate holds the lease.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, name: str, *, identity: str, timing: Timing | None = None
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self._identity = identity
        self._timing = timing or Timing()
        self._lease: dict[str, Any] = {}  # as last read or written
        self._changed_at = self._renewed_at = 0.0  # by the event loop's clock
        self.is_candidate = self.leads = False

    async def acquire(self) -> None:
        """Returns when this candidate leads."""
        logged = ""
        while not self.leads:
            why = await self._try_to_acquire()
            if why and why != logged:
                logged = why
                log.info("on standby", extra={"lease": f"{self._namespace}/{self._name}", "why": why})
            if not self.leads:
                await asyncio.sleep(self._timing.retry_s)
        log.info("leading", extra={"lease": f"{self._namespace}/{self._name}", "identity": self._identity})

    async def _try_to_acquire(self) -> str:
        """Why this candidate does not lead; empty when it does."""
        try:
            async with asyncio.timeout(self._timing.deadline_s):  # a later answer would be outdated
                return await self._read_and_take()
        except TimeoutError:
            return "the API server does not answer"
        except ApiError as error:
            return "another candidate was faster" if error.status == 409 else error.message

    async def _read_and_take(self) -> str:
        # The time before the request counts: a slow answer may then only shorten this candidate's term, never overlap
        # with its successor's.
        asked_at = self._now()
        found = await self._cluster.get_lease(self._namespace, self._name)
        if found is None:
            metadata = await self._owned({"namespace": self._namespace, "name": self._name})
            self._lease = await self._cluster.create_lease(metadata, self._spec({}))
        else:
            self.is_candidate = True
            # Only whether the lease changed counts, because its times come from another machine's clock. At the first
            # read the candidate waits for a whole duration: it cannot know when the holder last renewed.
            if _record(found) != _record(self._lease):
                self._changed_at = self._now()
            self._lease = found
            holder = found["spec"].get("holderIdentity")
            # The holder's duration, which another release may have set; a lease with an empty spec has none.
            duration_s = found["spec"].get("leaseDurationSeconds") or self._timing.duration_s
            # No holder: it was released, and need not expire. Nor need that of an operator that crashed in this pod.
            is_taken = holder and not is_of_same_pod(holder, self._identity)
            if is_taken and self._now() - self._changed_at <= duration_s:
                return f"{holder} leads"
            # The resourceVersion is the one that was read, so only one of several candidates can succeed.
            self._lease = await self._take(found | {"spec": self._spec(found["spec"])})
        self.is_candidate = self.leads = True
        self._renewed_at = asked_at
        return ""

    async def _take(self, lease: dict[str, Any]) -> dict[str, Any]:
        owned = lease | {"metadata": await self._owned(lease["metadata"])}
        try:
            return await self._cluster.replace_lease(owned)
        except ApiError as error:
            if error.status != 403 or owned == lease:
                raise
            # With OwnerReferencesPermissionEnforcement, changing the owners of an object needs the right to delete it.
            return await self._cluster.replace_lease(lease)

    async def _owned(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """The metadata with the holder's ServiceAccount as owner: uninstalling the release then deletes the lease."""
        owner = await self._cluster.own_service_account(self._namespace)
        if owner is None:
            return metadata
        # One owner of this kind: the ServiceAccount of an earlier installation may be gone.
        others = [each for each in metadata.get("ownerReferences", []) if each["kind"] != owner["kind"]]
        return metadata | {"ownerReferences": [*others, owner]}

    async def keep(self) -> None:
        """Renews the lease until it is cancelled.

        Raises: LeadershipLost.
        """
        try:
            while True:
                await asyncio.sleep(self._timing.retry_s)
                await self._renew()
        except LeadershipLost:
            # `release` must not overwrite the lease of the successor.
            self.leads = False
            raise

    async def _renew(self) -> None:
        deadline, refused = self._renewed_at + self._timing.deadline_s, "the API server does not answer"
        while True:
            try:
                # One deadline for all tries: it counts from the last renewal that succeeded.
                async with asyncio.timeout_at(deadline):
                    asked_at = self._now()
                    spec = self._lease["spec"] | {"renewTime": _micro_time()}
                    self._lease = await self._cluster.replace_lease(self._lease | {"spec": spec})
                    self._renewed_at = asked_at
                    return
            except TimeoutError:
                raise LeadershipLost(f"not renewed for {self._timing.deadline_s:.0f} s: {refused}") from None
            except ApiError as error:
                refused = error.message
                # 409 may also be our own write, whose answer was lost.
                if error.status in (404, 409):
                    await self._read_again()
            await asyncio.sleep(self._timing.retry_s)

    async def _read_again(self) -> None:
        """After another writer: continues if this candidate still holds the lease, as after a lost answer."""
        try:
            found = await self._cluster.get_lease(self._namespace, self._name)
        except ApiError:
            return  # retried until the deadline
        holder = found["spec"].get("holderIdentity") if found else None
        if found is None or holder != self._identity:
            raise LeadershipLost(f"{holder} leads" if holder else "the lease was deleted or released by another writer")
        # Of one format and one clock, so they can be compared as text.
        if found["spec"].get("renewTime", "") < self._lease["spec"]["renewTime"]:
            raise LeadershipLost("the lease is older than it was: etcd was restored from a backup")
        self._lease = found

    async def release(self) -> None:
        """Releases the lease, if held, so that another candidate need not wait until it expires."""
        if not self.leads:
            return
        self.leads = False
        # As client-go releases: 1 second, because the API server accepts no duration of 0.
        spec = self._lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
        try:
            async with asyncio.timeout(self._timing.retry_s):
                await self._cluster.replace_lease(self._lease | {"spec": spec})
        except (ApiError, TimeoutError) as error:
            log.warning("lease not released; it expires", extra={"error": str(error) or "no answer"})

    def _spec(self, before: dict[str, Any]) -> dict[str, Any]:
        now = _micro_time()
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._timing.duration_s,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", -1) + 1,  # 0 in a new lease
        }

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _record(lease: dict[str, Any]) -> dict[str, Any]:
    return dict(lease.get("spec") or {})


def _micro_time() -> str:
    # Kubernetes' MicroTime: always six decimals, unlike `isoformat`, which omits them if they are zero.
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
