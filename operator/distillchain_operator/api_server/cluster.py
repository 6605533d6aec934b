"""The connection to the API server: live reads and the operator's few writes, by the official async client.

Every answer is plain JSON data; every error is an `ApiError` with the API server's own message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

from distillchain_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from distillchain_operator.api_server.connection import ApiError, Connection
from distillchain_operator.caches.children import Kind, Listed, version_of
from distillchain_operator.jobs.labels import CHAIN_LABEL, SUSPENDED_ANNOTATION, TRAINER_CONTAINER
from distillchain_operator.status.transitions import ChainEvent

__all__ = ["COMPONENT", "ApiError", "Cluster"]

LOG_TAIL_LINES = 50  # a progress line comes about every second, with other lines between them
MERGE_PATCH = "application/merge-patch+json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
ALL_CHAINS = f"{CHAIN_LABEL},{CHAIN_LABEL}!="  # objects with the label, except those whose label is empty
INITIAL_EVENTS_END = "k8s.io/initial-events-end"  # annotation of the bookmark after them
PAGE_CHAINS = 25  # with 20 KB for three stages; the largest have megabytes
PAGE_CHILDREN = 100  # Jobs and pods with 10 KB
COMPONENT = "distillchain-operator"

First = TypeVar("First")
Second = TypeVar("Second")


class Cluster:
    """One connection to the API server, used as `async with await Cluster.connect()`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._job_written: Callable[[dict[str, Any]], None] = lambda _: None

    @classmethod
    async def connect(cls, *, answered: Callable[[str, int], None] = lambda *_: None) -> Self:
        """Connects by $KUBECONFIG, else as the pod's service account, else by ~/.kube/config.

        Args:
            answered: called with the method and HTTP code of every request; code 0: there was no answer.
        Raises: BadSetting.
        """
        return cls(await Connection.open(answered=answered))

    def now(self) -> datetime:
        """The present time by the API server's clock."""
        return self._connection.clock.now()

    def report_written_jobs(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Calls `report` with each Job that is created or changed from now on, as it is stored then."""
        self._job_written = report

    async def both(self, first: Awaitable[First], second: Awaitable[Second]) -> tuple[First, Second]:
        """The results of what two coroutines ask for at the same time. Raises: the first error."""
        return await asyncio.gather(first, second)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def list_chains(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        """All chains of a namespace, or of the cluster; a page of them is in memory."""
        try:
            async for chain in self._stream_chains(namespace):
                yield chain
        except ApiError as error:
            # The API server is older than 1.34 or has it disabled; or (504) its cache lags behind etcd.
            if error.status not in (400, 422, 504):
                raise
            async for page in self._pages(_chains(namespace), {"limit": str(PAGE_CHAINS)}):
                for chain in _items(page):
                    yield chain

    async def _stream_chains(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        # The API server sends them from its cache. Of a list in pages, it reads all but the first page from etcd, which
        # takes it 4 ms for each chain (measured).
        query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        async with contextlib.aclosing(self._connection.watch(_chains(namespace), query)) as changes:
            async for change in changes:
                document = change["object"]
                if change["type"] == "ERROR":
                    raise ApiError(document.get("code") or 500, document.get("message") or "unknown error")
                if change["type"] == "BOOKMARK":
                    if INITIAL_EVENTS_END in (document["metadata"].get("annotations") or {}):
                        return
                else:
                    yield document
        raise ApiError(0, "the stream of all chains ended early")

    async def _pages(self, path: str, query: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
        following: str | None = ""
        while following is not None:
            more = {"continue": following} if following else {}
            page = await self._connection.request("GET", path, query=query | more)
            following = page["metadata"].get("continue") or None
            yield page

    async def check_chains(self, namespace: str | None) -> None:
        """Checks cheaply whether the chains can be listed. Raises: ApiError."""
        # Not with `resourceVersion=0`: the API server would ignore the limit and send all chains.
        await self._connection.request("GET", _chains(namespace), query={"limit": "1"}, accept=METADATA_LIST)

    async def get_chain(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A chain as it is stored now, or None."""
        return await self._get(f"{_chains(namespace)}/{name}")

    async def list_jobs(self, namespace: str, chain: str) -> Listed:
        """The Jobs with the chain's label, as they are stored now."""
        return await self._list_of_chain(_jobs(namespace), chain)

    async def list_pods(self, namespace: str, chain: str) -> Listed:
        """The pods with the chain's label, as they are stored now."""
        return await self._list_of_chain(_pods(namespace), chain)

    async def _list_of_chain(self, path: str, chain: str) -> Listed:
        # No resourceVersion, so the answer is current. A cache could lack a Job that was created a moment ago.
        return _listed(await self._connection.request("GET", path, query={"labelSelector": f"{CHAIN_LABEL}={chain}"}))

    async def list_children(self, kind: Kind, namespace: str | None) -> AsyncIterator[Listed]:
        """The Jobs or pods of all chains, page by page."""
        query = {"labelSelector": ALL_CHAINS, "limit": str(PAGE_CHILDREN)}
        async for page in self._pages(_children(kind, namespace), query):
            yield _listed(page)

    async def watch_children(self, kind: Kind, namespace: str | None, *, since: int) -> AsyncIterator[dict[str, Any]]:
        """The changes of the Jobs or pods of all chains after a version."""
        query = {"labelSelector": ALL_CHAINS, "resourceVersion": str(since)}
        async for change in self._connection.watch(_children(kind, namespace), query):
            yield change

    async def get_job(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Job as it is stored now, or None."""
        return await self._get(f"{_jobs(namespace)}/{name}")

    async def create_job(self, job: dict[str, Any]) -> None:
        """Creates a Job."""
        path = _jobs(job["metadata"]["namespace"])
        self._job_written(await self._connection.request("POST", path, query=_dry(False), body=job))

    async def list_services(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        """The Services with the chain's label."""
        path = _collection("Service", namespace)
        return _items(await self._connection.request("GET", path, query={"labelSelector": f"{CHAIN_LABEL}={chain}"}))

    async def list_network_policies(self, namespace: str, chain: str) -> list[dict[str, Any]]:
        """The NetworkPolicies with the chain's label."""
        path = _collection("NetworkPolicy", namespace)
        return _items(await self._connection.request("GET", path, query={"labelSelector": f"{CHAIN_LABEL}={chain}"}))

    async def create_part(self, manifest: dict[str, Any], *, dry_run: bool = False) -> None:
        """Creates a Service or NetworkPolicy, or checks whether it would be accepted."""
        path = _collection(manifest["kind"], manifest["metadata"]["namespace"])
        await self._connection.request("POST", path, query=_dry(dry_run), body=manifest)

    async def dry_run_pod(self, pod: dict[str, Any]) -> None:
        """Checks whether a pod would be accepted; creates none."""
        try:
            await self._connection.request("POST", _pods(pod["metadata"]["namespace"]), query=_dry(True), body=pod)
        except ApiError as error:
            if error.reason != "AlreadyExists":  # checked after admission, which has accepted the pod then
                raise

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        """Deletes the Job with this UID, its pods first; no error if it is gone or another has its name."""
        # Foreground: the Job stays listed until its pods are gone, so that no other pod starts beside them. The UID,
        # because a new Job may have the name meanwhile.
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            await self._connection.request("DELETE", f"{_jobs(namespace)}/{name}", body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def set_suspend(self, namespace: str, name: str, *, uid: str, suspend: bool) -> None:
        """Suspends or resumes the Job with this UID; no error if it is gone or another has its name."""
        # The API server answers 409 if the Job of this name has another UID.
        metadata = {"uid": uid, "annotations": {SUSPENDED_ANNOTATION: "true" if suspend else None}}
        await self._patch_job(namespace, name, {"metadata": metadata, "spec": {"suspend": suspend}})

    async def set_ttl(self, namespace: str, name: str, *, uid: str, seconds: int) -> None:
        """Lets Kubernetes delete the Job with this UID so long after its end; no error if it is gone."""
        spec = {"ttlSecondsAfterFinished": seconds}
        await self._patch_job(namespace, name, {"metadata": {"uid": uid}, "spec": spec})

    async def annotate_job(self, namespace: str, name: str, *, uid: str, annotations: Mapping[str, str | None]) -> None:
        """Sets annotations of the Job with this UID, and removes those that are None; no error if it is gone."""
        await self._patch_job(namespace, name, {"metadata": {"uid": uid, "annotations": annotations}})

    async def label_job(self, namespace: str, name: str, *, uid: str, labels: dict[str, str]) -> None:
        """Sets labels of the Job with this UID; no error if it is gone or another has its name."""
        await self._patch_job(namespace, name, {"metadata": {"uid": uid, "labels": labels}})

    async def _patch_job(self, namespace: str, name: str, body: dict[str, Any]) -> None:
        try:
            path = f"{_jobs(namespace)}/{name}"
            self._job_written(await self._connection.request("PATCH", path, body=body, content_type=MERGE_PATCH))
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def patch_status(
        self, namespace: str, name: str, *, resource_version: str, status: dict[str, Any]
    ) -> dict[str, Any]:
        """Writes the status if the chain has not changed since it was read.

        Returns: the chain as it is stored now.
        Raises: ApiError 409 when it has changed.
        """
        body = {"metadata": {"resourceVersion": resource_version}, "status": status}
        path = f"{_chains(namespace)}/{name}/status"
        return await self._connection.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def create_event(self, chain: dict[str, Any], event: ChainEvent, *, at: datetime) -> None:
        """Creates an Event about a change of a chain at that time."""
        metadata = chain["metadata"]
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "namespace": metadata["namespace"],
                "annotations": dict(event.annotations),
            },
            "eventTime": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": f"{GROUP}/operator",
            # The API server allows 128 characters here.
            "reportingInstance": os.environ.get("HOSTNAME", COMPONENT)[:128],
            "action": "Reconcile",
            "reason": event.reason,
            "note": event.message,
            "type": event.type,
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
        }
        await self._connection.request(
            "POST", f"/apis/events.k8s.io/v1/namespaces/{metadata['namespace']}/events", body=body
        )

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A Lease as it is stored now, or None."""
        return await self._get(f"{_leases(namespace)}/{name}")

    async def own_service_account(self, namespace: str) -> dict[str, Any] | None:
        """An ownerReference to this process's ServiceAccount; None if it has none in the namespace.

        Every authenticated user may create a SelfSubjectReview (Kubernetes 1.28 and later).
        """
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            answer = await self._connection.request(
                "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=body
            )
        # Without an owner the lease outlives the release, which harms nobody.
        except ApiError:
            return None
        user = answer.get("status", {}).get("userInfo", {})
        prefix = f"system:serviceaccount:{namespace}:"
        name, uid = user.get("username", ""), user.get("uid")
        # A user of a kubeconfig, or a ServiceAccount elsewhere: an owner must be in the namespace of what it owns.
        if not (uid and name.startswith(prefix)):
            return None
        return {"apiVersion": "v1", "kind": "ServiceAccount", "name": name.removeprefix(prefix), "uid": uid}

    async def create_lease(self, metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
        """Creates a Lease.

        Raises: ApiError 409 when it exists.
        """
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        return await self._connection.request("POST", _leases(metadata["namespace"]), body=body)

    async def replace_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        """Writes a Lease if it has not changed since it was read.

        Raises: ApiError 409 when it has.
        """
        metadata = lease["metadata"]
        return await self._connection.request("PUT", f"{_leases(metadata['namespace'])}/{metadata['name']}", body=lease)

    async def log_tail(self, namespace: str, pod: str) -> list[str]:
        """The last lines of the container `trainer`; none if they cannot be read."""
        query = {"container": TRAINER_CONTAINER, "tailLines": str(LOG_TAIL_LINES)}
        try:
            status, text = await self._connection.exchange("GET", f"{_pods(namespace)}/{pod}/log", query=query)
        except ApiError:
            return []  # the next reconcile reads them
        return text.splitlines() if status == 200 else []

    async def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return await self._connection.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise


def _chains(namespace: str | None) -> str:
    return f"/apis/{GROUP}/{VERSION}" + (f"/namespaces/{namespace}" if namespace else "") + f"/{PLURAL}"


def _children(kind: Kind, namespace: str | None) -> str:
    group = "/apis/batch/v1" if kind is Kind.JOBS else "/api/v1"
    return group + (f"/namespaces/{namespace}" if namespace else "") + f"/{kind.value}"


def _jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def _pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def _collection(kind: str, namespace: str) -> str:
    """Path of the Services or NetworkPolicies of a namespace."""
    if kind == "Service":
        return f"/api/v1/namespaces/{namespace}/services"
    return f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"


def _leases(namespace: str) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


def _dry(dry_run: bool) -> dict[str, str]:
    # Strict, so that an unknown field in the user's pod template is refused instead of dropped.
    return {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}


def _listed(document: dict[str, Any]) -> Listed:
    return Listed(version_of(document), _items(document))


def _items(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(document.get("items") or [])
