"""A modelled chain from its creation to its deletion, and what operators must never say or do about it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING

from distillchain_api.evidence_vertices import without_failed
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.retry_request import RetryRequest, open_retry
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.jobs.labels import SPEC_ANNOTATION, digest_label
from distillchain_operator.jobs.stage_job import spec_hash
from simulation.etcd import Document
from simulation.objects import (
    digest_of,
    has_condition,
    is_deleting,
    is_export,
    is_finished,
    is_live,
    is_over,
    is_succeeded,
    needs_user,
    owner_of,
    stage_of,
    terminated,
    uid_of,
    version_of,
)
from simulation.plans import chain_of, plan_of

if TYPE_CHECKING:
    from simulation.namespace import Namespace

FATAL, FATAL_CLASSES = 66, ("DataInvalid", "CheckpointCorrupt")


class Chain:
    """One chain.

    Attributes:
        stages: the vertices that it has or has had, with the digests that they need, by digest in the form of the label.
        answered: digests that pods of its Jobs have committed, or found committed.
        committed_at: the version of the first status that says that a stage is committed, by digest.
        discarded_at: the version at which the user discarded a commit, by digest.
        failed: name and creation of each Job whose failure status has.
        stalled: UIDs of Jobs that hold no place and no stage: their stages needed the user while they existed.
        replaced: UIDs of Jobs that had ended when an edit found that another Job should run.
        edited_at: the version of its last edit.
    """

    def __init__(self, namespace: Namespace, document: Document) -> None:
        self.namespace, self.etcd = namespace, namespace.etcd
        self.name, self.uid = document["metadata"]["name"], uid_of(document)
        self.stages: dict[str, tuple[PlannedStage, set[str]]] = {}
        self.answered: set[str] = set()
        self.committed_at: dict[str, int] = {}
        self.discarded_at: dict[str, int] = {}
        self.failed: set[tuple[str, str]] = set()
        self.stalled: set[str] = set()
        self.replaced: set[str] = set()
        self.status_writes = 0
        self.document = namespace.put("chains", document)
        self.edited_at = version_of(self.document)
        self.store = namespace.stores.setdefault(document["spec"]["storage"]["uri"], set())
        self.plan = self._learn_plan()

    @property
    def exists(self) -> bool:
        """It was not deleted."""
        return self.namespace.chains.get(self.name) is self

    @property
    def status(self) -> Document:
        return dict(self.document.get("status", {}))

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def has_ended(self) -> bool:
        """It has succeeded, its controls too, and every export is made."""
        entries = [*self.status.get("stages", []), *self.status.get("evidence", [])]
        is_open = any(entry["phase"] != "Committed" or "missingExport" in entry for entry in entries)
        return self.phase == "Succeeded" and not is_open

    @property
    def jobs(self) -> list[Document]:
        return [job for job in self.namespace.objects["jobs"].values() if owner_of(job) == self.uid]

    @property
    def digests(self) -> set[str]:
        """Of the vertices that its spec has now."""
        return {digest_label(stage.digest) for stage in self.plan.vertices}

    @property
    def open_request(self) -> RetryRequest:
        """What the user wants to run again, as long as status does not say that this was noticed."""
        return open_retry(self.document["metadata"].get("annotations"), self.status.get("handledRetry"))

    @property
    def _again(self) -> frozenset[str]:
        """Stages that the user wants to train again although they are committed."""
        return self.open_request.stages if self.open_request.committed_too else frozenset()

    def edit(self, change: Document) -> None:
        """Replaces fields of the spec."""
        self.replaced |= {uid_of(job) for job in self.jobs if is_finished(job) and not self._is_of_spec(job)}
        metadata = self.document["metadata"] | {"generation": self.document["metadata"]["generation"] + 1}
        self._put(self.document | {"metadata": metadata, "spec": self.document["spec"] | change})
        self.edited_at = self.etcd.version
        self.plan = self._learn_plan()

    def annotate(self, annotations: dict[str, str]) -> None:
        self._put(self.document | {"metadata": self.document["metadata"] | {"annotations": annotations}})

    def discard(self, digests: set[str]) -> None:
        """The user discards the commits of stages."""
        self.store -= digests & self.stages.keys()
        self.forget_commits(digests)

    def forget_commits(self, digests: set[str]) -> None:
        """Answers so far say no more that these stages are committed, because a checkpoint is gone or damaged."""
        self.etcd.version += 1  # what an operator has read before is older
        for digest in digests & self.stages.keys():
            self.answered.discard(digest)
            self.committed_at.pop(digest, None)
            self.discarded_at[digest] = self.etcd.version

    def patch_status(self, version: str, status: Document) -> Document:
        if version != self.document["metadata"]["resourceVersion"]:
            raise ApiError(409, "the object has been modified", reason="Conflict")
        stored = {key: value for key, value in status.items() if value is not None}
        if stored == self.document.get("status"):
            return self.document
        self.status_writes += 1
        self._put(self.document | {"status": stored})
        for entry in (*stored.get("stages", []), *stored.get("evidence", [])):
            if entry["name"] not in self._again:
                self._check_entry(entry)
        self.stall(stored)
        current = {digest_label(stage.digest) for stage in self.plan.stages}
        is_current = stored.get("observedGeneration") == self.document["metadata"]["generation"]
        if stored["phase"] == "Succeeded" and is_current and not self._again and not current <= self.answered:
            self.etcd.fail("the chain was reported as succeeded too soon")
        return self.document

    def stall(self, status: Document) -> None:
        """The Jobs of stages that need the user, as a status says, hold no place and no stage from now on."""
        entries = [*status.get("stages", []), *status.get("evidence", [])]
        stuck = {entry["name"] for entry in entries if needs_user(entry)}
        self.stalled |= {uid_of(job) for job in self.jobs if is_live(job) and stage_of(job) in stuck}

    def _put(self, document: Document) -> None:
        self.document = self.namespace.put("chains", document)

    def _check_entry(self, entry: Document) -> None:
        digest, name = digest_label(entry.get("digest") or ""), entry["name"]
        if entry["phase"] == "Committed":
            if digest not in self.answered:
                self.etcd.fail(f"stage {name} was reported as committed and is not")
            self.committed_at.setdefault(digest, self.etcd.version)
        elif digest in self.committed_at:
            self.etcd.fail(f"stage {name} was committed and is {entry['phase']} now")
        if entry["phase"] == "Failed" and entry.get("job"):
            self.failed.add((entry["job"], entry["startedAt"]))
            self._check_failure(entry)

    def _check_failure(self, entry: Document) -> None:
        """A failure is that of the Job, and has the reason that a trainer gave."""
        name, found = entry["name"], entry["failureClass"]
        uid, retries = self.namespace.born[entry["job"], entry["startedAt"]]
        crashes = self.namespace.crashes[uid]
        if crashes <= retries:
            self.etcd.fail(f"stage {name} has failed after {crashes} crashes: {entry.get('message')}")
        answers = [terminated(pod) for pod in self.namespace.objects["pods"].values() if owner_of(pod) == uid]
        if found not in FATAL_CLASSES and any(answer.get("exitCode") == FATAL for answer in answers):
            self.etcd.fail(f"stage {name} has failed as {found}, and its trainer has given another reason")

    def check_new_job(self, job: Document, *, seen: int) -> None:
        """An operator that has listed the Jobs at the version `seen` creates a Job."""
        name, digest = job["metadata"]["name"], digest_of(job)
        missing = self.stages[digest][1] - self.store
        # What the user has discarded since is noticed at the next look.
        if any(self.discarded_at.get(need, 0) <= seen for need in missing):
            self.etcd.fail(f"Job {name} was created before the stages that it needs were committed")
        if is_export(job):
            if digest not in self.answered and self.discarded_at.get(digest, 0) <= seen:
                self.etcd.fail(f"Job {name} was created to export a stage that is not committed")
        elif self.committed_at.get(digest, seen + 1) <= seen:
            self.etcd.fail(f"Job {name} was created for a stage that is committed")
        own = [other for other in self.jobs if other["known_at"] <= seen]
        for other in own:
            if is_live(other) and digest_of(other) == digest:
                self.etcd.fail(f"Job {name} was created beside {other['metadata']['name']}")
        # A stage of the chain does not wait for an export.
        waits = is_export(job) or self.stages[digest][0].is_evidence
        used = sum(self._is_used(other) for other in own if waits or not is_export(other))
        if used >= self.plan.max_parallel_jobs:
            self.etcd.fail(f"Job {name} was created beside {used} others, which is more than maxParallelJobs")

    def _is_used(self, job: Document) -> bool:
        """Whether a Job still trains or will; one that is deleted does so until its pods have stopped."""
        pods = self.namespace.pods_of(job)
        waits = is_live(job) and not any(is_succeeded(pod) for pod in pods)
        return waits or any(not is_over(pod) for pod in pods)

    def check_deletion(self, job: Document, *, seen: int) -> None:
        """An operator that has listed the Jobs at the version `seen` deletes one of them."""
        name = job["metadata"]["name"]
        if self.would_lose_answer(job, seen):
            self.etcd.fail(f"Job {name} was deleted before its commit was written to status")
        if not is_live(job) or self.edited_at > seen or self.open_request.stages:
            return
        if digest_of(job) in self.committed_at or digest_of(job) not in self.digests:
            return
        for other in self.jobs:
            is_same = is_live(other) and digest_of(other) == digest_of(job)
            is_known = other["known_at"] <= seen and uid_of(other) not in self.namespace.kept
            has_answered = any(map(is_succeeded, self.namespace.pods_of(other)))
            if is_same and is_known and not has_answered and _age(other) > _age(job):
                self.etcd.fail(f"Job {name} was deleted, and {other['metadata']['name']}, which is younger, was not")

    def would_lose_answer(self, job: Document, seen: int) -> bool:
        """Whether a pod of the Job had committed a stage of the spec at a version, and status does not say so."""
        others = [other for other in self.jobs if other is not job and digest_of(other) == digest_of(job)]
        is_elsewhere = any(self.namespace.has_answer(other, seen) for other in others if not is_deleting(other))
        return self._needs(job) and self.namespace.has_answer(job, seen) and not is_elsewhere

    def would_lose_failure(self, job: Document) -> bool:
        """Whether a Job of the spec has failed, and neither status says so nor another one runs instead.

        An edit that asks for another Job is a retry, also if it comes before the failure is in status, and if a later
        edit takes it back.
        """
        if uid_of(job) in self.replaced or not self._is_of_spec(job):
            return False
        is_recorded = (job["metadata"]["name"], job["metadata"]["creationTimestamp"]) in self.failed
        status = self.document.get("status", {})
        # Of two Jobs that have failed, status names one.
        is_recorded |= any(
            entry["phase"] == "Failed" and digest_label(entry["digest"]) == digest_of(job)
            for entry in [*status.get("stages", []), *status.get("evidence", [])]
        )
        others = [other for other in self.jobs if digest_of(other) == digest_of(job) and other is not job]
        return self._needs(job) and has_condition(job, "Failed") and not is_recorded and not others

    def _is_of_spec(self, job: Document) -> bool:
        digest = digest_of(job)
        spec = spec_hash(self.plan.chain, self.stages[digest][0])
        return digest in self.digests and job["metadata"]["annotations"][SPEC_ANNOTATION] == spec

    def _needs(self, job: Document) -> bool:
        """Whether what becomes of a Job still counts."""
        digest = digest_of(job)
        is_again = self.stages[digest][0].name in self._again
        return digest in self.digests and not is_again and digest not in self.committed_at

    def _learn_plan(self) -> Plan:
        plan = plan_of(chain_of(self.document))
        digests = {stage.name: digest_label(stage.digest) for stage in plan.vertices}
        for stage in plan.vertices:
            for variant in _variants(stage):
                self.stages[digest_label(variant.digest)] = variant, {digests[need] for need in variant.needs}
        # What status said of other stages may be forgotten: if an edit brings them back, they are found in the store.
        self.committed_at = {digest: at for digest, at in self.committed_at.items() if digest in digests.values()}
        return plan


def _age(job: Document) -> tuple[str, str]:
    """Larger for a younger Job."""
    return job["metadata"]["creationTimestamp"], job["metadata"]["name"]


def _variants(stage: PlannedStage) -> Iterator[PlannedStage]:
    """A vertex; of a verdict also those without students that have failed."""
    yield stage
    if stage.is_verdict:
        for count in range(1, len(stage.needs) + 1):
            for missing in combinations(stage.needs, count):
                yield without_failed(stage, set(missing))
