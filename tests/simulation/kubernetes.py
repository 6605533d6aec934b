"""The Job controller, the kubelet and the garbage collector, who act on the objects of one namespace."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from chain_builders import a_commit, a_failure, a_pod
from distillchain_api.failures import FailureClass
from distillchain_operator.jobs.labels import CHAIN_LABEL, JOB_NAME_LABEL
from distillchain_operator.status.chain_status import timestamp
from exporting import EXPORTED, FAILURE
from simulation.chain import FATAL
from simulation.etcd import START, Document
from simulation.namespace import Namespace
from simulation.objects import (
    chain_name_of,
    digest_of,
    is_deleting,
    is_finished,
    is_live,
    is_over,
    is_running,
    is_succeeded,
    is_suspended,
    order_of,
    owner_of,
    terminated,
    uid_of,
)
from simulation.sharing import check_start

GRACE = timedelta(seconds=600)
INTERRUPTED, CRASHED, STOPPED = 75, 1, 143
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}


class Kubernetes:
    """What runs beside the operators in one namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace, self.etcd, self.rng = namespace, namespace.etcd, namespace.rng

    @property
    def _jobs(self) -> list[Document]:
        return list(self.namespace.objects["jobs"].values())

    @property
    def _pods(self) -> list[Document]:
        return list(self.namespace.objects["pods"].values())

    @property
    def is_busy(self) -> bool:
        """A pod has not ended, which another step will change."""
        return any(not is_over(pod) or is_deleting(pod) for pod in self._pods)

    @property
    def due_at(self) -> float | None:
        """When the next Job expires, in seconds since the start."""
        moments = filter(None, map(_expires_at, self._jobs))
        return min(((moment - START).total_seconds() for moment in moments), default=None)

    def act_on_jobs(self, *, well: bool) -> None:
        """One step of the Job controller and of the garbage collector for each Job.

        Args:
            well: no Job has to wait for its turn.
        """
        for job in self._jobs:
            if not well and self.rng.random() < 0.3:
                continue
            pods = self.namespace.pods_of(job)
            if not self.namespace.known[owner_of(job)].exists:
                self.namespace.remove("jobs", job["metadata"]["name"])
            elif is_deleting(job):
                for pod in pods:
                    self._stop(pod)
                if not pods:
                    self.namespace.remove("jobs", job["metadata"]["name"])
            elif is_finished(job):
                self._expire(job)
            elif is_suspended(job) and not any(map(is_succeeded, pods)):
                for pod in pods:
                    self._stop(pod, also_if_over=False)
                self._set_conditions(job, [{"type": "Suspended", "status": "True"}])
            else:
                self._follow_pods(job, pods)
        owners = {job["metadata"]["uid"] for job in self._jobs}
        for pod in self._pods:
            if owner_of(pod) not in owners:
                self._stop(pod)

    def _expire(self, job: Document) -> None:
        expires_at = _expires_at(job)
        if expires_at is None or self.etcd.now < expires_at:
            return
        chain = self.namespace.home[uid_of(job)]
        if chain.would_lose_answer(job, self.etcd.version) or chain.would_lose_failure(job):
            self.etcd.fail(f"Job {job['metadata']['name']} expired before its result was written to status")
        self.namespace.remove("jobs", job["metadata"]["name"])

    def _follow_pods(self, job: Document, pods: list[Document]) -> None:
        found = [_consequence(job, pod) for pod in pods]
        condition: Document | None = None
        if any(is_succeeded(pod) for pod in pods):
            condition = {"type": "Complete", "reason": "CompletionsReached"}
        elif "FailJob" in found:
            condition = {"type": "Failed", "reason": "PodFailurePolicy"}
        elif found.count("Count") > job["spec"]["backoffLimit"]:
            condition = {"type": "Failed", "reason": "BackoffLimitExceeded"}
        if condition is not None:
            self._set_conditions(job, [condition | {"status": "True", "lastTransitionTime": timestamp(self.etcd.now)}])
        elif all(is_over(pod) for pod in pods):
            self._create_pod(job)

    def _create_pod(self, job: Document) -> None:
        number = self.etcd.created_pods = self.etcd.created_pods + 1
        pod = a_pod(job, phase="Pending", number=number)
        labels = pod["metadata"]["labels"] | {CHAIN_LABEL: chain_name_of(job)}
        created = {"creationTimestamp": timestamp(self.etcd.now), "uid": f"{number:08d}-pod", "labels": labels}
        metadata = pod["metadata"] | created | {"namespace": self.namespace.name}
        self.namespace.put("pods", pod | {"metadata": metadata})

    def _set_conditions(self, job: Document, conditions: list[Document]) -> None:
        if job["status"].get("conditions") != conditions:
            failed = sum(_consequence(job, pod) in ("Count", "FailJob") for pod in self.namespace.pods_of(job))
            self.namespace.put("jobs", job | {"status": job["status"] | {"conditions": conditions, "failed": failed}})

    def act_on_pods(self, *, well: bool) -> None:
        """One step of the kubelet for each pod.

        Args:
            well: every trainer commits its stage, unless it is stopped.
        """
        for pod in self._pods:
            if is_deleting(pod):
                if self.rng.random() < 0.5:  # a trainer needs some time to save its state
                    self._end_stopping(pod)
            elif pod["status"]["phase"] == "Pending":
                self._start(pod)
            elif not is_over(pod):
                ends = ["commit"] if well else ["commit", "commit", "crash", "interrupted", "fatal", "runs"]
                self._end(pod, self.rng.choice(ends), well=well)

    def _start(self, pod: Document) -> None:
        check_start(self.namespace, pod)
        self._set_state(pod, "Running", {"running": {"startedAt": timestamp(self.etcd.now)}})

    def _end_stopping(self, pod: Document) -> None:
        """A trainer that was asked to stop saves its state, or has just committed its stage."""
        job = self.namespace.objects["jobs"].get(pod["metadata"]["labels"][JOB_NAME_LABEL])
        if is_succeeded(pod) and job is not None and uid_of(job) == owner_of(pod) and is_live(job):
            return  # the Job controller has not counted it yet
        if is_running(pod) and (how := self.rng.choice(["commit", "interrupted", "gone"])) != "gone":
            self._end(pod, how)
        else:
            self.namespace.remove("pods", pod["metadata"]["name"])

    def _end(self, pod: Document, how: str, *, well: bool = False) -> None:
        namespace, digest = self.namespace, digest_of(pod)
        chain = namespace.home[owner_of(pod)]
        stage, needs = chain.stages[digest]
        order = order_of(pod)
        read = {digest} if order.get("exportOnly") else needs
        if how == "commit" and not read <= chain.store:
            how = "crash"  # the user has discarded it
        if how == "commit":
            answer = a_commit(stage, reused=digest in chain.store, attempt=f"{pod['metadata']['uid'][:8]}-1")
            if "export" in order:
                fails = not well and self.rng.random() < 0.3
                answer = answer.model_copy(update={"export_failure": FAILURE} if fails else {"exports": [EXPORTED]})
            chain.store.add(digest)
            chain.answered.add(digest)
            self._terminate(pod, "Succeeded", 0, answer.to_json())
        elif how == "fatal":
            namespace.crashes[owner_of(pod)] += 99
            # A verdict names which of many checkpoints it has found damaged.
            may_be_damaged = namespace.has_exports and needs and not stage.is_verdict
            is_damaged = may_be_damaged and self.rng.random() < 0.5
            failure = FailureClass.CHECKPOINT_CORRUPT if is_damaged else FailureClass.DATA_INVALID
            answer_text = a_failure(stage, failure, "it failed").to_json()
            self._terminate(pod, "Failed", FATAL, answer_text)
        elif how == "crash":
            namespace.crashes[owner_of(pod)] += 1
            self._terminate(pod, "Failed", CRASHED, "")
        elif how == "interrupted":
            self._terminate(pod, "Failed", INTERRUPTED, "")

    def _terminate(self, pod: Document, phase: str, code: int, message: str, **status: Any) -> None:
        at = timestamp(self.etcd.now)
        ended = {"exitCode": code, "message": message, "finishedAt": at, "reason": "Error"}
        self._set_state(pod, phase, {"terminated": ended}, **status)

    def _set_state(self, pod: Document, phase: str, state: Document, **status: Any) -> None:
        containers = [{"name": "trainer", "state": state}]
        self.namespace.put("pods", pod | {"status": {"phase": phase, "containerStatuses": containers, **status}})

    def _stop(self, pod: Document, *, also_if_over: bool = True) -> None:
        if is_deleting(pod) or (is_over(pod) and not also_if_over):
            return
        if is_running(pod):
            at = timestamp(self.etcd.now + GRACE)
            self.namespace.put("pods", pod | {"metadata": pod["metadata"] | {"deletionTimestamp": at}})
        else:
            self.namespace.remove("pods", pod["metadata"]["name"])

    def evict_a_pod(self) -> None:
        for pod in self._pods:
            if is_running(pod) and not is_deleting(pod):
                self._terminate(pod, "Failed", STOPPED, "", conditions=[DISRUPTED])
                return


def _expires_at(job: Document) -> datetime | None:
    seconds = job["spec"].get("ttlSecondsAfterFinished")
    if seconds is None or not is_finished(job):
        return None
    ended = datetime.fromisoformat(job["status"]["conditions"][0]["lastTransitionTime"])
    return ended + timedelta(seconds=seconds)


def _consequence(job: Document, pod: Document) -> str:
    """What the podFailurePolicy of a Job does about a pod that has failed: Ignore, FailJob or Count."""
    if pod["status"]["phase"] != "Failed" or is_deleting(pod):
        return "Ignore"
    code = terminated(pod).get("exitCode")
    conditions = {condition["type"] for condition in pod["status"].get("conditions", [])}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if any(pattern["type"] in conditions for pattern in rule.get("onPodConditions", [])):
            return str(rule["action"])
        if code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"
