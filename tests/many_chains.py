"""Several chains of one namespace, their Jobs and pods, and a controller that looks at those that have news."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from chain_builders import a_commit, a_document, own_store
from deciding import NOON
from distillchain_api.failures import EXIT_INTERRUPTED
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.api_server.cluster import ApiError, Cluster
from distillchain_operator.caches.children import Children, Kind
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.controller.controller import Controller
from distillchain_operator.jobs.labels import CHAIN_LABEL, DIGEST_LABEL, STAGE_LABEL, SUSPENDED_ANNOTATION
from distillchain_operator.settings import Settings
from distillchain_operator.status.chain_status import timestamp
from fake_api_server import FakeApiServer, FakeClock

NAMESPACE = "ml"


class Namespace:
    """A namespace with chains; `settle` lets the operator look until it has nothing to do."""

    both = Cluster.both

    def __init__(self, limit: int = 0) -> None:
        self.servers: dict[str, FakeApiServer] = {}
        self.lists = 0
        self.reads = 0
        self.created: list[str] = []  # `CHAIN/STAGE` of each Job, in order
        self.most_running = 0
        self._limit, self._jobs = limit, 0
        self.clock = FakeClock()
        self.cache_jobs = False  # whether the next operator knows Jobs and pods from watches
        self.start_operator(is_complete=True)

    def start_operator(self, *, is_complete: bool = False) -> None:
        """Starts an operator in place of the one before. `settle` then looks at all chains."""
        self.news: deque[ChainKey] = deque()
        self.children = Children(FinishedChains())  # not followed, so everything is read
        if self.cache_jobs:
            self.fill_cache()
        self.neighbours = Neighbours(self._limit, is_complete=is_complete, children=self.children)
        self.neighbours.report_to(lambda concerned: self.report(concerned.key.name))
        settings = Settings(max_running_chains=self._limit, namespaces=(NAMESPACE,))
        self.controller = Controller(
            cast("Cluster", self),
            settings,
            clock=lambda: NOON,
            monotonic=self.clock,
            children=self.children,
            neighbours=self.neighbours,
        )
        for name in self.servers:
            self.report(name)

    def fill_cache(self, *, version: int = 1) -> None:
        """The watches begin, with the Jobs as they are; live lists have version 1."""
        for kind in Kind:
            self.children.follow(kind, None, is_followed=True)
        for server in self.servers.values():
            for kind, children in ((Kind.JOBS, server.jobs), (Kind.PODS, server.pods)):
                for number, child in enumerate(children):
                    where = {"namespace": NAMESPACE, "resourceVersion": str(version + number)}
                    self.children.apply(kind, "ADDED", {**child, "metadata": child["metadata"] | where})

    def apply(self, name: str, *, second: int = 0, **spec: Any) -> None:
        """Creates a chain, so many seconds after noon, or replaces its spec."""
        document = a_document(name, **{"storage": own_store(name), **spec})
        metadata = {"namespace": NAMESPACE, "uid": f"uid-of-{name}", "resourceVersion": "1", "generation": 1}
        if name in self.servers:
            before = self.servers[name].chain
            generation = before["metadata"]["generation"] + 1
            before |= {"spec": document["spec"], "metadata": before["metadata"] | {"generation": generation}}
        else:
            self.servers[name] = FakeApiServer()
            created_at = timestamp(NOON + timedelta(seconds=second))
            document["metadata"] |= metadata | {"creationTimestamp": created_at}
            self.servers[name].chain = document
        self.report(name)

    def annotate(self, name: str, annotations: Mapping[str, str]) -> None:
        self.servers[name].chain["metadata"].setdefault("annotations", {}).update(annotations)
        self.report(name)

    def delete(self, name: str) -> None:
        del self.servers[name]
        self.report(name)

    def report(self, name: str) -> None:
        key = ChainKey(NAMESPACE, name)
        self.controller.chains.report(key, None)
        self.controller.chains.report(key, 10**9)  # read again
        if key not in self.news:
            self.news.append(key)

    async def settle(self) -> None:
        for _ in range(1000):
            if not self.news:
                return
            await self.look()
        raise AssertionError(f"the operator looks at {self.news} for ever")

    async def try_all(self) -> None:
        """Looks once at each chain that has news; a look that fails is not repeated."""
        for _ in range(1000):
            if not self.news:
                return
            with contextlib.suppress(ApiError, ValueError):
                await self.controller.reconcile(self.news.popleft())
        raise AssertionError(f"the operator looks at {self.news} for ever")

    async def pass_backoffs(self) -> None:
        """All chains are looked at after what was refused may be tried again."""
        self.clock.now_s += 31
        for name in self.servers:
            self.report(name)
        await self.try_all()

    async def look(self) -> None:
        """The operator looks at the first chain that has news."""
        await self.controller.reconcile(self.news.popleft())
        self.most_running = max(self.most_running, len(self.running()))

    def plan(self, name: str) -> Plan:
        return build_plan(parse_chain(self.servers[name].chain, from_cluster=True))

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.servers[name].chain.get("status", {})
        return status

    def stage(self, name: str, stage: str) -> dict[str, Any]:
        status = self.status(name)
        entries = [*status.get("stages", []), *status.get("evidence", [])]
        return next(entry for entry in entries if entry["name"] == stage)

    def running(self) -> list[str]:
        """Names of the chains with a Job that runs."""
        return [name for name in self.servers if any(is_active(job) for job in self.servers[name].jobs)]

    def waiting(self) -> list[str]:
        """Names of the chains that wait for others."""
        return [name for name in self.servers if "Waiting" in reason_of(self.status(name))]

    def run_pod(self, name: str, job: dict[str, Any] | None = None) -> dict[str, Any]:
        """The pod of a Job starts, or that of the chain's only active Job."""
        server = self.servers[name]
        if job is None:
            (job,) = [job for job in server.jobs if is_active(job)]
        pod = {
            "metadata": {
                "name": f"{job['metadata']['name']}-{len(server.pods)}",
                "uid": f"{len(server.pods)}-{name}",
                "creationTimestamp": "2026-01-01T12:00:00Z",
                "ownerReferences": [{"controller": True, "uid": job["metadata"]["uid"]}],
                "labels": {
                    "batch.kubernetes.io/job-name": job["metadata"]["name"],
                    **{label: job["metadata"]["labels"][label] for label in (CHAIN_LABEL, STAGE_LABEL, DIGEST_LABEL)},
                },
            },
            "spec": {"nodeName": "node-1", "containers": [{"name": "trainer"}]},
            "status": {"phase": "Running", "containerStatuses": [trainer(running={})]},
        }
        server.pods.append(pod)
        self.report(name)
        return pod

    def stall(self, name: str) -> None:
        """A pod of the chain waits for a Secret that does not exist."""
        pod = self.run_pod(name)
        waiting = {"reason": "CreateContainerConfigError", "message": 'secret "s3-credentials" not found'}
        containers = [{"name": "trainer", "state": {"waiting": waiting}}]
        pod["status"] = {"phase": "Pending", "containerStatuses": containers}

    def commit(self, name: str, *, reused: bool = False) -> None:
        """The trainer of the chain's active Job commits its stage."""
        (job,) = [job for job in self.servers[name].jobs if is_active(job)]
        self.commit_job(name, job, reused=reused)

    def commit_job(self, name: str, job: dict[str, Any], *, reused: bool = False) -> None:
        """The trainer of a Job commits its stage."""
        stage = self.plan(name).stage(job["metadata"]["labels"][STAGE_LABEL])
        assert stage is not None
        running = [pod for pod in self.pods_of(name, job) if pod["status"]["phase"] == "Running"]
        pod = running[0] if running else self.run_pod(name, job)
        ended = {
            "exitCode": 0,
            "message": a_commit(stage, reused=reused).to_json(),
            "finishedAt": "2026-01-01T12:00:00Z",
        }
        pod["status"] = {"phase": "Succeeded", "containerStatuses": [trainer(terminated=ended)]}
        end(job, "Complete")
        self.report(name)

    def fail(self, name: str) -> None:
        (job,) = [job for job in self.servers[name].jobs if is_active(job)]
        self.fail_job(name, job)

    def fail_job(self, name: str, job: dict[str, Any]) -> None:
        """The trainer of a Job crashes for the last time."""
        for pod in self.pods_of(name, job):
            ended = {"exitCode": 1, "message": "", "finishedAt": "2026-01-01T12:00:00Z"}
            pod["status"] = {"phase": "Failed", "containerStatuses": [trainer(terminated=ended)]}
        end(job, "Failed", reason="BackoffLimitExceeded")
        self.report(name)

    def pods_of(self, name: str, job: dict[str, Any]) -> list[dict[str, Any]]:
        uid = job["metadata"]["uid"]
        return [pod for pod in self.servers[name].pods if pod["metadata"]["ownerReferences"][0]["uid"] == uid]

    def interrupt(self, name: str) -> None:
        """The pods of a suspended chain have saved their state."""
        for pod in self.servers[name].pods:
            ended = {"exitCode": EXIT_INTERRUPTED, "message": "", "finishedAt": "2026-01-01T12:00:00Z"}
            pod["status"] = {"phase": "Failed", "containerStatuses": [trainer(terminated=ended)]}
        self.report(name)

    # What the operator asks the API server for.

    async def list_chains(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        self.lists += 1
        for server in list(self.servers.values()):
            yield server.chain

    async def get_chain(self, namespace: str, name: str) -> dict[str, Any] | None:
        self.reads += 1
        return await self.servers[name].get_chain(namespace, name) if name in self.servers else None

    async def list_jobs(self, namespace: str, chain: str) -> Any:
        server = self.servers.get(chain, FakeApiServer())
        return await server.list_jobs(namespace, chain)

    async def list_pods(self, namespace: str, chain: str) -> Any:
        server = self.servers.get(chain, FakeApiServer())
        return await server.list_pods(namespace, chain)

    async def dry_run_pod(self, pod: dict[str, Any]) -> None:
        await self.servers[pod["metadata"]["labels"][CHAIN_LABEL]].dry_run_pod(pod)

    async def create_job(self, job: dict[str, Any]) -> None:
        labels, self._jobs = job["metadata"]["labels"], self._jobs + 1
        given = {"creationTimestamp": f"2026-01-01T12:01:{self._jobs:02d}Z", "uid": f"job-{self._jobs}"}
        job = job | {"metadata": {"labels": labels, **job["metadata"], **given}, "status": {}}
        self.servers[labels[CHAIN_LABEL]].jobs.append(job)
        self.created.append(f"{labels[CHAIN_LABEL]}/{labels[STAGE_LABEL]}")
        self.report(labels[CHAIN_LABEL])

    async def patch_status(self, namespace: str, name: str, **more: Any) -> dict[str, Any]:
        if name not in self.servers:
            raise ApiError(404, "not found")
        return await self.servers[name].patch_status(namespace, name, **more)

    async def create_event(self, chain: dict[str, Any], event: Any, *, at: datetime) -> None:
        await self.servers[chain["metadata"]["name"]].create_event(chain, event, at=at)

    async def log_tail(self, namespace: str, pod: str) -> list[str]:
        return []

    async def set_suspend(self, namespace: str, name: str, *, uid: str, suspend: bool) -> None:
        await self.annotate_job(
            namespace, name, uid=uid, annotations={SUSPENDED_ANNOTATION: "true" if suspend else None}
        )
        self._job(uid)["spec"]["suspend"] = suspend

    async def annotate_job(self, namespace: str, name: str, *, uid: str, annotations: Mapping[str, str | None]) -> None:
        metadata = self._job(uid)["metadata"]
        merged = {**metadata.get("annotations", {}), **annotations}
        metadata["annotations"] = {key: value for key, value in merged.items() if value is not None}
        self.report(metadata["labels"][CHAIN_LABEL])

    async def set_ttl(self, namespace: str, name: str, *, uid: str, seconds: int) -> None:
        self._job(uid)["spec"]["ttlSecondsAfterFinished"] = seconds

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        chain = self._job(uid)["metadata"]["labels"][CHAIN_LABEL]
        server = self.servers[chain]
        server.pods = [pod for pod in server.pods if pod["metadata"]["ownerReferences"][0]["uid"] != uid]
        await server.delete_job(namespace, name, uid=uid)
        self.report(chain)

    def _job(self, uid: str) -> dict[str, Any]:
        jobs = (job for server in self.servers.values() for job in server.jobs)
        return next(job for job in jobs if job["metadata"]["uid"] == uid)


def is_active(job: dict[str, Any]) -> bool:
    return not job["spec"].get("suspend") and not job["status"].get("conditions")


def end(job: dict[str, Any], condition: str, *, reason: str = "") -> None:
    moment = {"lastTransitionTime": "2026-01-01T12:00:00Z"}
    job["status"]["conditions"] = [{"type": condition, "status": "True", "reason": reason, **moment}]


def trainer(**state: Any) -> dict[str, Any]:
    return {"name": "trainer", "state": state}


def reason_of(status: dict[str, Any]) -> str:
    """Why the chain is not ready."""
    return next((str(c["reason"]) for c in status.get("conditions", []) if c["type"] == "Ready"), "")


async def a_full_namespace(*names: str, limit: int = 1, **spec: Any) -> Namespace:
    """Chains created in this order, of which the first ones run."""
    namespace = Namespace(limit)
    for second, name in enumerate(names):
        namespace.apply(name, second=second, **spec)
        await namespace.settle()
    return namespace
