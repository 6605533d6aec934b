"""A namespace of a modelled API server with one chain: its objects, and what operators must never write there.

Objects are never changed in place: each write stores a new object with the next version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from chain_builders import a_document
from distillchain_api.evidence_vertices import without_failed
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.retry_request import RetryRequest, open_retry
from distillchain_operator.cluster import ApiError
from distillchain_operator.labels import DIGEST_LABEL, digest_label
from distillchain_operator.status import timestamp
from simulation.etcd import Document, Etcd
from simulation.plans import chain_of, plan_of

NAME = "relay"
STAGES = ("mini", "tiny", "femto")
FATAL, DATA_INVALID = 66, "DataInvalid"


class Namespace:
    """One chain with its Jobs and pods, and the store of its stages.

    Attributes:
        has_one_operator: no other operator ever works on this chain at the same time.
        answered: digests of the stages that are committed in the store, in the form of the label.
        committed_at: the version of the first status that says that a stage is committed, by digest.
        discarded_at: the version at which the user discarded a commit, by digest.
        crashes: pods of a Job that crashed, by its UID; a fatal one counts as many.
        born: UID and retries of every Job, by its name and the time of its creation.
    """

    def __init__(self, etcd: Etcd, name: str, *, has_one_operator: bool) -> None:
        self.etcd, self.rng, self.name = etcd, etcd.rng, name
        self.has_one_operator = has_one_operator
        self.objects: dict[str, dict[str, Document]] = {"chains": {}, "jobs": {}, "pods": {}}
        self.stages: dict[str, tuple[PlannedStage, set[str]]] = {}
        self.answered: set[str] = set()
        self.committed_at: dict[str, int] = {}
        self.discarded_at: dict[str, int] = {}
        self.crashes: Counter[str] = Counter()
        self.born: dict[tuple[str, str], tuple[str, int]] = {}
        self.status_writes = self.created_pods = 0
        self.put("chains", self._a_chain())
        self.plan = self._learn_plan()

    def _a_chain(self) -> Document:
        """With evidence or a TTL, or neither."""
        rng = self.rng
        template: Document = {"retries": rng.randint(0, 2)}
        spec: Document = {"template": template}
        stages = STAGES[: rng.choice([1, 1, 2, 2, 2, 3])]
        if rng.random() < 0.3:
            template["ttlAfterFinished"] = "90s"
        if len(stages) > 1 and rng.random() < 0.1:
            spec |= {"evidence": {"controls": ["Direct"], "seeds": 2}, "maxParallelJobs": rng.randint(1, 3)}
        # Without an image: the operator's default decides, so that an upgrade may change the names of Jobs.
        document = a_document(NAME, stages=stages, **spec)
        document["metadata"] |= {"namespace": self.name, "uid": f"chain-{self.etcd.version}", "generation": 1}
        return document

    @property
    def chain(self) -> Document:
        return self.objects["chains"][NAME]

    @property
    def status(self) -> Document:
        return dict(self.chain.get("status", {}))

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    def put(self, kind: str, document: Document) -> Document:
        """Stores an object as its next version."""
        name = document["metadata"]["name"]
        change = "MODIFIED" if name in self.objects[kind] else "ADDED"
        stored = self.objects[kind][name] = self.etcd.record(kind, self.name, change, document)
        return stored

    def remove(self, kind: str, name: str) -> None:
        self.etcd.record(kind, self.name, "DELETED", self.objects[kind].pop(name))

    def create_job(self, job: Document, *, seen: int) -> Document:
        """Creates a Job for an operator that has listed the Jobs at the version `seen`."""
        name = job["metadata"]["name"]
        if name in self.objects["jobs"]:
            raise ApiError(409, f"jobs {name} already exists", reason="AlreadyExists")
        self._check_new_job(job, seen=seen)
        created = {"uid": f"job-{self.etcd.version}", "creationTimestamp": timestamp(self.etcd.now)}
        status = {"startTime": timestamp(self.etcd.now)}
        metadata = job["metadata"] | {"namespace": self.name} | created
        self.born[name, created["creationTimestamp"]] = created["uid"], job["spec"]["backoffLimit"]
        return self.put("jobs", job | {"metadata": metadata, "status": status, "known_at": self.etcd.version + 1})

    def _check_new_job(self, job: Document, *, seen: int) -> None:
        name, digest = job["metadata"]["name"], digest_of(job)
        missing = self.stages[digest][1] - self.answered
        # What the user has discarded since is noticed at the next look.
        if any(self.discarded_at.get(need, 0) <= seen for need in missing):
            self.etcd.fail(f"Job {name} was created before the stages that it needs were committed")
        if self.committed_at.get(digest, seen + 1) <= seen:
            self.etcd.fail(f"Job {name} was created for a stage that is committed")
        known = [other for other in self.objects["jobs"].values() if other["known_at"] <= seen]
        own = [other for other in known if owner_of(other) == owner_of(job)]
        for other in own:
            if is_live(other) and digest_of(other) == digest:
                self.etcd.fail(f"Job {name} was created beside {other['metadata']['name']}")
        used = sum(self._is_used(other) for other in own)
        if used >= self.plan.max_parallel_jobs:
            self.etcd.fail(f"Job {name} was created beside {used} others, which is more than maxParallelJobs")

    def _is_used(self, job: Document) -> bool:
        """Whether a Job still trains or will; one that is deleted does so until its pods have stopped."""
        pods = self.pods_of(job)
        waits = is_live(job) and not any(is_succeeded(pod) for pod in pods)
        return waits or any(not is_over(pod) for pod in pods)

    def patch_job(self, name: str, uid: str, *, spec: Document, annotations: Document) -> Document | None:
        job = self.objects["jobs"].get(name)
        if job is None or job["metadata"]["uid"] != uid:
            return None
        kept = {**job["metadata"].get("annotations", {}), **annotations}
        kept = {key: value for key, value in kept.items() if value is not None}
        changed = job | {"metadata": job["metadata"] | {"annotations": kept}, "spec": job["spec"] | spec}
        return job if changed == job else self.put("jobs", changed)

    def delete_job(self, name: str, uid: str, *, seen: int) -> None:
        """Deletes a Job for an operator that has listed the pods at the version `seen`."""
        job = self.objects["jobs"].get(name)
        if job is None or job["metadata"]["uid"] != uid or is_deleting(job):
            return
        if self.would_lose_answer(job, seen):
            self.etcd.fail(f"Job {name} was deleted before its commit was written to status")
        self.put("jobs", job | {"metadata": job["metadata"] | {"deletionTimestamp": timestamp(self.etcd.now)}})

    def would_lose_answer(self, job: Document, seen: int) -> bool:
        """Whether a pod of the Job had committed a stage of the spec at a version, and status does not say so."""
        digest = digest_of(job)
        is_wanted = digest in {digest_label(stage.digest) for stage in self.plan.vertices}
        is_again = self.stages[digest][0].name in self._again()
        return is_wanted and not is_again and digest not in self.committed_at and self.has_answer(job, seen)

    @property
    def open_request(self) -> RetryRequest:
        """What the user wants to run again, as long as status does not say that this was noticed."""
        return open_retry(self.chain["metadata"].get("annotations"), self.status.get("handledRetry"))

    def _again(self) -> frozenset[str]:
        """Stages that the user wants to train again although they are committed."""
        return self.open_request.stages if self.open_request.committed_too else frozenset()

    def has_answer(self, job: Document, seen: int) -> bool:
        """Whether a pod of the Job had committed its stage at a version, and the user has not discarded it."""
        after = self.discarded_at.get(digest_of(job), 0)
        ended = [int(pod["metadata"]["resourceVersion"]) for pod in self.pods_of(job) if is_succeeded(pod)]
        return any(after < version <= seen for version in ended)

    def patch_status(self, version: str, status: Document) -> Document:
        if version != self.chain["metadata"]["resourceVersion"]:
            raise ApiError(409, "the object has been modified", reason="Conflict")
        stored = {key: value for key, value in status.items() if value is not None}
        if stored == self.chain.get("status"):
            return self.chain
        self.status_writes += 1
        written = self.put("chains", self.chain | {"status": stored})
        for entry in (*stored.get("stages", []), *stored.get("evidence", [])):
            if entry["name"] not in self._again():
                self._check_entry(entry)
        current = {digest_label(stage.digest) for stage in self.plan.stages}
        is_current = stored.get("observedGeneration") == self.chain["metadata"]["generation"]
        if stored["phase"] == "Succeeded" and is_current and not self._again() and not current <= self.answered:
            self.etcd.fail("the chain was reported as succeeded too soon")
        return written

    def _check_entry(self, entry: Document) -> None:
        digest, name = digest_label(entry.get("digest") or ""), entry["name"]
        if entry["phase"] == "Committed":
            if digest not in self.answered:
                self.etcd.fail(f"stage {name} was reported as committed and is not")
            self.committed_at.setdefault(digest, self.etcd.version)
        elif digest in self.committed_at:
            self.etcd.fail(f"stage {name} was committed and is {entry['phase']} now")
        if entry["phase"] == "Failed" and entry.get("job"):
            self._check_failure(entry)

    def _check_failure(self, entry: Document) -> None:
        """A failure is that of the Job, and has the reason that a trainer gave."""
        name, found = entry["name"], entry["failureClass"]
        uid, retries = self.born[entry["job"], entry["startedAt"]]
        if self.crashes[uid] <= retries:
            self.etcd.fail(f"stage {name} has failed after {self.crashes[uid]} crashes: {entry.get('message')}")
        answers = [terminated(pod) for pod in self.objects["pods"].values() if owner_of(pod) == uid]
        if found != DATA_INVALID and any(answer.get("exitCode") == FATAL for answer in answers):
            self.etcd.fail(f"stage {name} has failed as {found}, and its trainer answered {DATA_INVALID}")

    def replace_chain(self) -> None:
        """The user deletes the chain and creates another one of the same name; the garbage collector comes later."""
        self.remove("chains", NAME)
        self.committed_at.clear()
        self.put("chains", self._a_chain())
        self.plan = self._learn_plan()

    def edit(self, change: Document) -> None:
        """Replaces fields of the spec."""
        metadata = self.chain["metadata"] | {"generation": self.chain["metadata"]["generation"] + 1}
        self.put("chains", self.chain | {"metadata": metadata, "spec": self.chain["spec"] | change})
        self.plan = self._learn_plan()

    def annotate(self, annotations: dict[str, str]) -> None:
        self.put("chains", self.chain | {"metadata": self.chain["metadata"] | {"annotations": annotations}})

    def pods_of(self, job: Document) -> list[Document]:
        uid = job["metadata"]["uid"]
        return [pod for pod in self.objects["pods"].values() if owner_of(pod) == uid]

    def _learn_plan(self) -> Plan:
        plan = plan_of(chain_of(self.chain))
        digests = {stage.name: digest_label(stage.digest) for stage in plan.vertices}
        for stage in plan.vertices:
            for variant in _variants(stage):
                self.stages[digest_label(variant.digest)] = variant, {digests[need] for need in variant.needs}
        # What status said of other stages may be forgotten: if an edit brings them back, they are found in the store.
        self.committed_at = {digest: at for digest, at in self.committed_at.items() if digest in digests.values()}
        return plan


def _variants(stage: PlannedStage) -> Iterator[PlannedStage]:
    """A vertex; of a verdict also those without students that have failed."""
    yield stage
    if stage.is_verdict:
        for count in range(1, len(stage.needs) + 1):
            for missing in combinations(stage.needs, count):
                yield without_failed(stage, set(missing))


def digest_of(document: Document) -> str:
    return str(document["metadata"]["labels"][DIGEST_LABEL])


def owner_of(document: Document) -> str:
    """The UID of what controls a Job or pod."""
    return str(document["metadata"]["ownerReferences"][0]["uid"])


def has_condition(job: Document, kind: str) -> bool:
    return any(condition["type"] == kind for condition in job["status"].get("conditions", []))


def is_deleting(document: Document) -> bool:
    return "deletionTimestamp" in document["metadata"]


def is_finished(job: Document) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


def is_live(job: Document) -> bool:
    return not is_deleting(job) and not is_finished(job)


def is_over(pod: Document) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def is_succeeded(pod: Document) -> bool:
    return bool(pod["status"]["phase"] == "Succeeded")


def terminated(pod: Document) -> Any:
    """The end of the trainer; empty while it runs."""
    return pod["status"]["containerStatuses"][0]["state"].get("terminated", {})
