"""A chain's Jobs and pods as frozen values, which parsing.py reads.

Does not know what any of it means for the chain; reconcile and policy decide that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from distillchain_api.failures import EXIT_INTERRUPTED
from distillchain_api.wire.answer import Committed, Failed, Interrupted
from distillchain_operator.jobs.labels import POD_UID_CHARS


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
    """It counts no longer. False for one that failed and goes because its TTL has passed: its failure still counts."""
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
