"""A chain's Jobs and pods as frozen values; no Kubernetes JSON goes beyond this module.

Does not know what any of it means for the chain; reconcile and policy decide that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from distillchain_api.failures import EXIT_INTERRUPTED
from distillchain_api.resource.job import JOB_CONTROLLER, QUEUE_LABEL
from distillchain_api.resource.parallelism import gpus_of
from distillchain_api.retry_request import annotated_retry
from distillchain_api.wire.answer import Committed, Failed, Interrupted, parse_answer
from distillchain_api.wire.plain_text import on_one_line
from distillchain_operator.jobs.labels import (
    DIGEST_LABEL,
    EXPORT_ANNOTATION,
    INDEX_ANNOTATION,
    JOB_NAME_LABEL,
    POD_UID_CHARS,
    PODS_ANNOTATION,
    SPEC_ANNOTATION,
    STAGE_LABEL,
    SUSPENDED_ANNOTATION,
    TRAINER_CONTAINER,
)

# The second is the name before Kubernetes 1.27.
JOB_NAME_LABELS = (JOB_NAME_LABEL, "job-name")
UNKNOWN_INDEX = 10**9  # larger than that of any node


class JobState(Enum):
    """The phase of a Job."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TrainerEnd:
    """How the container `trainer` of a pod ended."""

    exit_code: int
    reason: str = ""
    message: str = ""
    """Its last words, on one line."""
    finished_at: str = ""
    answer: Committed | Failed | Interrupted | None = None
    """The trainer's own answer, if it gave one."""

    @property
    def is_interruption(self) -> bool:
        """It was interrupted and saved its state: no crash."""
        return self.exit_code == EXIT_INTERRUPTED


@dataclass(frozen=True, slots=True)
class WaitingContainer:
    """A container that has not started, and the kubelet's reason and message."""

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """One pod of a stage's Job."""

    name: str
    uid: str
    job: str
    phase: str
    created_at: str
    job_uid: str = ""
    """Of the Job that created it; a later Job may have the same name."""
    stage: str = ""
    """From its label, so it is known when its Job is gone."""
    index: int = 0
    """Number of its node in a stage on several nodes; UNKNOWN_INDEX if somebody has changed it to something else."""
    node: str = ""
    gpus: int = 0
    """What its container `trainer` asks for; an edit of the chain may ask for others in the next pod."""
    stop_by: str = ""
    """When it must have stopped, its grace period included; empty: it was not asked to stop."""
    disrupted: str = ""
    """Why it was evicted or preempted; empty: it was not."""
    waiting: tuple[WaitingContainer, ...] = ()
    """The trainer first."""
    unschedulable: str = ""
    """The scheduler's message; empty: scheduled, or not tried yet."""
    rejected: str = ""
    """The kubelet's reason and message for a pod that it refused or evicted."""
    running: bool = False
    """The container `trainer` runs."""
    started_at: str = ""
    """When its container `trainer` started; empty: it has not."""
    others_running: tuple[str, ...] = ()
    """Names of the user's own containers that run."""
    broken_container: str = ""
    """A container of the user that ended with an error."""
    broken_how: str = ""
    """How it ended."""
    end: TrainerEnd | None = None

    @property
    def short_uid(self) -> str:
        """The form that is recorded on its Job."""
        return self.uid[:POD_UID_CHARS]

    @property
    def deleting(self) -> bool:
        """It was asked to stop."""
        return bool(self.stop_by)

    @property
    def is_leader(self) -> bool:
        """It has node 0, whose trainer writes progress, checkpoints and the answer of the whole stage."""
        return self.index == 0

    @property
    def has_not_started(self) -> bool:
        """It waits for a node, an image, a volume or a Secret."""
        return not (self.is_over or self.deleting or self.running or self.end)

    @property
    def is_over(self) -> bool:
        """None of its containers runs any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def was_refused(self) -> bool:
        """The kubelet of its node refused to run it, for example because the node was full (OutOfcpu)."""
        never_ran = self.end is None and not self.broken_container
        return self.phase == "Failed" and never_ran and bool(self.rejected) and not self.disrupted


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """One Job with the label of a chain."""

    name: str
    uid: str
    stage: str
    digest: str
    """Shortened, as in the label."""
    state: JobState
    owner_uid: str = ""
    """Of the chain that controls it; empty: nothing controls it."""
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    """Those of other controllers, which keep it after its pods are gone."""
    noted_pods: frozenset[str] = frozenset()
    """Short UIDs of the pods that it has had, deleted ones included."""
    noted_runs: Mapping[str, str] = field(default_factory=dict)
    """When their trainers ran, as noted (run_time.py): `START` or `START/END` by short UID."""
    suspend_wanted: bool = False
    """`spec.suspend`; the Job controller acts on it a moment later."""
    noted_suspended: bool = False
    """This operator suspended it and has not resumed it, whatever other controllers did since."""
    queue: str = ""
    """LocalQueue of Kueue, which then decides when it runs; empty: none."""
    managed_by: str = ""
    """The controller that runs it; empty: Kubernetes' own."""
    created_at: str = ""
    started_at: str = ""
    finished_at: str = ""
    nodes: int = 1
    """Pods that run at the same time."""
    active: int = 0
    failed: int = 0
    succeeded: int = 0
    exports_only: bool = False
    """It exports a committed stage."""
    retry: str = ""
    """The user's last request to run stages again when it was created."""
    spec_hash: str = ""
    """What the chain asked for when it was created; empty for a Job of an earlier build."""
    retries: int = 0
    ttl_s: int | None = None
    """How long after its end Kubernetes deletes it; None: never."""
    deadline_s: int | None = None
    reason: str = ""
    """Of its Failed condition."""
    message: str = ""

    @property
    def has_failed(self) -> bool:
        """The Job controller has given it up."""
        return self.state is JobState.FAILED

    @property
    def is_finished(self) -> bool:
        """It will never run a pod again."""
        return self.state in (JobState.SUCCEEDED, JobState.FAILED)

    @property
    def is_open_group(self) -> bool:
        """It runs on several nodes, and its pods need to find each other."""
        return self.nodes > 1 and not self.is_finished and not self.deleting


@dataclass(frozen=True)
class Observed:
    """The Jobs and pods of one chain at one moment."""

    jobs: tuple[ObservedJob, ...] = ()
    pods: tuple[ObservedPod, ...] = ()
    """Pods of foreign Jobs and of deleted Jobs are included, because they may still run."""
    foreign_jobs: frozenset[str] = frozenset()
    """UIDs of Jobs that have the chain's label and another owner, such as a deleted chain of the same name."""
    ownerless_jobs: frozenset[str] = frozenset()
    """Those of them that nothing controls, so that nothing deletes them but the user."""
    parts: frozenset[tuple[str, str]] = frozenset()
    """Kind and owner's UID of each Service and NetworkPolicy of a Job."""
    by_name: Mapping[str, ObservedJob] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A frozen dataclass has no other way to set a field that is computed.
        object.__setattr__(self, "by_name", {job.name: job for job in self.jobs})

    def pods_of(self, job: ObservedJob) -> list[ObservedPod]:
        """Pods of this Job, oldest first."""
        own = (pod for pod in self.pods if pod.job_uid == job.uid)
        return sorted(own, key=lambda pod: (pod.created_at, pod.name))


def observe(*, chain_uid: str, jobs: Iterable[dict[str, Any]], pods: Iterable[dict[str, Any]]) -> Observed:
    """The Jobs that the chain of this UID controls, and all of the pods, from the API server's JSON."""
    return of_chain(chain_uid, map(parse_job, jobs), map(parse_pod, pods))


def of_chain(uid: str, jobs: Iterable[ObservedJob], pods: Iterable[ObservedPod]) -> Observed:
    """What a chain has of the Jobs and pods with its label."""
    jobs = tuple(jobs)
    # By owner, not by label: anybody may put our label on a Job, and a deleted chain's Jobs still have it.
    owned = tuple(job for job in jobs if job.owner_uid == uid)
    foreign = frozenset(job.uid for job in jobs if job.owner_uid != uid)
    ownerless = frozenset(job.uid for job in jobs if not job.owner_uid)
    # Whatever the pod's annotation says.
    on_one_node = {job.uid for job in owned if job.nodes == 1}
    pods = tuple(replace(pod, index=0) if pod.index and pod.job_uid in on_one_node else pod for pod in pods)
    return Observed(jobs=owned, pods=pods, foreign_jobs=foreign, ownerless_jobs=ownerless)


def parts_of(documents: Iterable[dict[str, Any]], *, kind: str) -> frozenset[tuple[str, str]]:
    """Services or NetworkPolicies as `Observed.parts` has them; the items of a list do not state their kind."""
    return frozenset((kind, uid) for document in documents if (uid := _controller_uid(document)))


def _controller_uid(document: dict[str, Any]) -> str:
    owners = document["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def is_controlled_by(document: dict[str, Any], uid: str) -> bool:
    """Whether `uid` is the object's controller; a recreated chain has the same name."""
    return _controller_uid(document) == uid


def parse_job(document: dict[str, Any]) -> ObservedJob:
    """A Job from the API server's JSON."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    # `filter`, because splitting an empty text gives one empty part.
    noted = (note.partition("=") for note in filter(None, annotations.get(PODS_ANNOTATION, "").split(",")))
    notes = {uid: run for uid, _, run in noted}
    # A condition that no longer holds stays in the list with status False, as Suspended does after a resume.
    conditions = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
    # Complete and Failed are final. SuccessCriteriaMet and FailureTarget, which newer releases set first, are not: pods
    # may still be stopping.
    state, decisive = JobState.ACTIVE, {}
    if "Complete" in conditions:
        state, decisive = JobState.SUCCEEDED, conditions["Complete"]
    elif "Failed" in conditions:
        state, decisive = JobState.FAILED, conditions["Failed"]
    # The Job controller clears the condition a moment after `suspend` is false again.
    elif "Suspended" in conditions and spec.get("suspend"):
        state = JobState.SUSPENDED
    return ObservedJob(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        stage=labels.get(STAGE_LABEL, ""),
        digest=labels.get(DIGEST_LABEL, ""),
        state=state,
        owner_uid=_controller_uid(document),
        deleting="deletionTimestamp" in metadata,
        finalizers=tuple(name for name in metadata.get("finalizers") or [] if "/" in name),
        noted_pods=frozenset(notes),
        noted_runs={uid: run for uid, run in notes.items() if run},
        suspend_wanted=bool(spec.get("suspend")),
        noted_suspended=SUSPENDED_ANNOTATION in annotations,
        # From the label: Kueue adds that of a default queue, and an administrator may add one too.
        queue=labels.get(QUEUE_LABEL, ""),
        managed_by="" if (manager := spec.get("managedBy", "")) == JOB_CONTROLLER else manager,
        created_at=metadata.get("creationTimestamp", ""),
        started_at=status.get("startTime", ""),
        # A failed Job has no completionTime.
        finished_at=status.get("completionTime") or decisive.get("lastTransitionTime", ""),
        nodes=spec.get("completions", 1) if spec.get("completionMode") == "Indexed" else 1,
        active=status.get("active", 0),
        failed=status.get("failed", 0),
        succeeded=status.get("succeeded", 0),
        exports_only=EXPORT_ANNOTATION in annotations,
        retry=annotated_retry(annotations),
        spec_hash=annotations.get(SPEC_ANNOTATION, ""),
        retries=spec.get("backoffLimit", 0),
        ttl_s=spec.get("ttlSecondsAfterFinished"),
        deadline_s=spec.get("activeDeadlineSeconds"),
        reason=decisive.get("reason", ""),
        message=on_one_line(decisive.get("message", "")),
    )


def parse_pod(document: dict[str, Any]) -> ObservedPod:
    """A pod from the API server's JSON."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    index = annotations.get(INDEX_ANNOTATION, "0")
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    disrupted = conditions.get("DisruptionTarget", {})
    scheduled = conditions.get("PodScheduled", {})
    containers = status.get("containerStatuses") or []
    trainer: dict[str, Any] = next((c for c in containers if c.get("name") == TRAINER_CONTAINER), {})
    # The user's own containers, init containers too, may wait for an image or a Secret as well.
    users = [c for c in containers if c is not trainer] + (status.get("initContainerStatuses") or [])
    # With restartPolicy Never, the trainer's current state is its only one.
    state = trainer.get("state") or {}
    # Only of the user's containers; how the trainer ended is in `end`.
    broken = next((c for c in users if _exit_code(c)), None)
    # SchedulingGated is another reason: a controller such as Kueue holds the pod back on purpose.
    unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return ObservedPod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        job=next((labels[key] for key in JOB_NAME_LABELS if key in labels), ""),
        phase=status.get("phase", "Pending"),
        created_at=metadata.get("creationTimestamp", ""),
        node=spec.get("nodeName", ""),
        gpus=sum(
            gpus_of(c.get("resources") or {}) for c in spec.get("containers") or [] if c["name"] == TRAINER_CONTAINER
        ),
        stop_by=metadata.get("deletionTimestamp", ""),
        disrupted=(disrupted.get("reason") or "DisruptionTarget") if disrupted.get("status") == "True" else "",
        waiting=tuple(_waiting(c) for c in (trainer, *users) if (c.get("state") or {}).get("waiting")),
        unschedulable=on_one_line(scheduled.get("message", "unschedulable")) if unschedulable else "",
        # Of the pod, not of a container: set for a pod that the kubelet evicts or refuses to run, not for a crash.
        rejected=on_one_line(": ".join(filter(None, (status.get("reason"), status.get("message"))))),
        job_uid=_controller_uid(document),
        stage=labels.get(STAGE_LABEL, ""),
        # The Job controller deletes a pod of a group whose index it cannot read, and creates another one.
        index=int(index) if index.isdecimal() and len(index) < 10 else UNKNOWN_INDEX,
        running="running" in state,
        started_at=(state.get("running") or state.get("terminated") or {}).get("startedAt") or "",
        others_running=tuple(c["name"] for c in users if "running" in (c.get("state") or {})),
        broken_container=broken["name"] if broken else "",
        broken_how=_how_it_ended(broken) if broken else "",
        end=_trainer_end(state.get("terminated")),
    )


def _waiting(container: dict[str, Any]) -> WaitingContainer:
    waiting = container["state"]["waiting"]
    return WaitingContainer(container["name"], waiting.get("reason", ""), on_one_line(waiting.get("message", "")))


def _exit_code(container: dict[str, Any]) -> int:
    terminated = (container.get("state") or {}).get("terminated") or {}
    return int(terminated.get("exitCode", 0))


def _how_it_ended(container: dict[str, Any]) -> str:
    terminated = container["state"]["terminated"]
    reason = terminated.get("reason", "")
    # The kubelet says `Error` for every exit code but 0, which adds nothing.
    named = f" ({reason})" if reason not in ("", "Error") else ""
    words = on_one_line(terminated.get("message", "").strip())
    return f"ended with exit code {_exit_code(container)}{named}" + (f": {words}" if words else "")


def _trainer_end(terminated: dict[str, Any] | None) -> TrainerEnd | None:
    if not terminated:
        return None
    message = terminated.get("message", "")
    return TrainerEnd(
        exit_code=terminated.get("exitCode", 0),
        reason=terminated.get("reason", ""),
        message=on_one_line(message),
        answer=parse_answer(message),
        # null if the kubelet did not see the end, as after a restart of the node.
        finished_at=terminated.get("finishedAt") or "",
    )
