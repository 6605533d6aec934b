"""The Job controller, the kubelet, the garbage collector and users, who act on the objects of one namespace."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from chain_builders import a_commit, a_failure, a_pod
from distillchain_api.failures import FailureClass
from distillchain_api.retry_request import new_retry
from distillchain_operator.labels import CHAIN_LABEL, digest_label
from distillchain_operator.status import timestamp
from simulation.etcd import START, Document
from simulation.namespace import (
    FATAL,
    NAME,
    Namespace,
    digest_of,
    is_deleting,
    is_finished,
    is_over,
    is_succeeded,
    owner_of,
    terminated,
)

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
            if owner_of(job) != self.namespace.chain["metadata"]["uid"]:
                self.namespace.remove("jobs", job["metadata"]["name"])
            elif is_deleting(job):
                for pod in pods:
                    self._stop(pod)
                if not pods:
                    self.namespace.remove("jobs", job["metadata"]["name"])
            elif is_finished(job):
                self._expire(job)
            elif job["spec"].get("suspend"):
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
        if self.namespace.would_lose_answer(job, self.etcd.version):
            self.etcd.fail(f"Job {job['metadata']['name']} expired before its commit was written to status")
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
        number = self.namespace.created_pods = self.namespace.created_pods + 1
        pod = a_pod(job, phase="Pending", number=number)
        labels = pod["metadata"]["labels"] | {CHAIN_LABEL: NAME}
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
                self._end(pod, self.rng.choice(ends))

    def _start(self, pod: Document) -> None:
        digest = digest_of(pod)
        beside = [other for other in self._pods if digest_of(other) == digest and _is_running(other)]
        if beside and self.namespace.has_one_operator and digest not in self.namespace.answered:
            self.etcd.fail(f"pod {pod['metadata']['name']} trains beside {beside[0]['metadata']['name']}")
        self._set_state(pod, "Running", {"running": {"startedAt": timestamp(self.etcd.now)}})

    def _end_stopping(self, pod: Document) -> None:
        """A trainer that was asked to stop saves its state, or has just committed its stage."""
        if _is_running(pod) and (how := self.rng.choice(["commit", "interrupted", "gone"])) != "gone":
            self._end(pod, how)
        else:
            self.namespace.remove("pods", pod["metadata"]["name"])

    def _end(self, pod: Document, how: str) -> None:
        namespace, digest = self.namespace, digest_of(pod)
        stage, needs = namespace.stages[digest]
        if how == "commit" and not needs <= namespace.answered:
            how = "crash"  # the user has discarded its teacher
        if how == "commit":
            answer = a_commit(stage, reused=digest in namespace.answered, attempt=f"{pod['metadata']['uid'][:8]}-1")
            namespace.answered.add(digest)
            self._terminate(pod, "Succeeded", 0, answer.to_json())
        elif how == "fatal":
            namespace.crashes[owner_of(pod)] += 99
            answer_text = a_failure(stage, FailureClass.DATA_INVALID, "it failed").to_json()
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
        if _is_running(pod):
            at = timestamp(self.etcd.now + GRACE)
            self.namespace.put("pods", pod | {"metadata": pod["metadata"] | {"deletionTimestamp": at}})
        else:
            self.namespace.remove("pods", pod["metadata"]["name"])

    def evict_a_pod(self) -> None:
        for pod in self._pods:
            if _is_running(pod) and not is_deleting(pod):
                self._terminate(pod, "Failed", STOPPED, "", conditions=[DISRUPTED])
                return

    def delete_a_job(self) -> None:
        """As a user does who frees a GPU: its pods are deleted first, or only after it."""
        for job in self._jobs:
            if not self.namespace.has_answer(job, self.etcd.version):
                if self.rng.random() < 0.5:
                    self.namespace.remove("jobs", job["metadata"]["name"])
                else:
                    at = timestamp(self.etcd.now)
                    self.namespace.put("jobs", job | {"metadata": job["metadata"] | {"deletionTimestamp": at}})
                return

    def lose_a_pod(self) -> None:
        """The pod of a stage whose commit is in status is deleted, as with its node."""
        for pod in self._pods:
            if is_over(pod) and digest_of(pod) in self.namespace.committed_at:
                self.namespace.remove("pods", pod["metadata"]["name"])
                return

    def retry(self) -> None:
        """As `distillchain retry` does."""
        status = self.namespace.status
        entries = (*status.get("stages", []), *status.get("evidence", []))
        failed = [entry["name"] for entry in entries if entry["phase"] == "Failed"]
        if failed and not self.namespace.open_request.stages:
            self.namespace.annotate(new_retry(failed, token=str(self.etcd.version)))

    def train_again(self) -> None:
        """As `distillchain retry --from STAGE --discard` does, which waits until no pod of the stages runs."""
        namespace, stages = self.namespace, self.namespace.plan.vertices
        again = stages[self.rng.randrange(len(namespace.plan.stages)) :]
        digests = {digest_label(stage.digest) for stage in again}
        is_running = any(digest_of(pod) in digests and not is_over(pod) for pod in self._pods)
        if is_running or namespace.open_request.stages:
            return
        for digest in digests:
            namespace.answered.discard(digest)
            namespace.committed_at.pop(digest, None)
            namespace.discarded_at[digest] = self.etcd.version
        names = [stage.name for stage in again]
        namespace.annotate(new_retry(names, token=str(self.etcd.version), committed_too=True))


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


def _is_running(pod: Document) -> bool:
    return bool(pod["status"]["phase"] == "Running")
