"""What one reconcile sees of a chain, and the lookups in it that the decisions need. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.status import Admission, ChainStatus, StageStatus
from distillchain_api.retry_request import RetryRequest, annotated_retry, open_retry
from distillchain_api.wire.answer import Committed, Progress
from distillchain_operator.decide.peers import Peer
from distillchain_operator.decide.turns import Place
from distillchain_operator.jobs.labels import digest_label
from distillchain_operator.jobs.observed import Observed, ObservedJob, ObservedPod
from distillchain_operator.jobs.stage_job import spec_hash
from distillchain_operator.jobs.wanted_jobs import WantedJobs
from distillchain_operator.status.chain_status import INVALID_SPEC


@dataclass(frozen=True)
class View:
    """Everything that a decision about one chain depends on.

    Attributes:
        previous: the status as stored.
        wanted: the Jobs that the spec asks for.
        progress: newest progress line of the running pod, if it was read.
        backing_off: names of Jobs that the API server refused a moment ago.
        refused: names of Jobs that the API server refused the last time.
        turn: why the chain has to wait for its turn; None: it has its turn, or may start.
        peers: chains that run a stage of this one, by digest in the form of the label.
    """

    plan: Plan
    observed: Observed
    previous: ChainStatus
    wanted: WantedJobs
    progress: Progress | None
    now: datetime
    backing_off: frozenset[str] = frozenset()
    turn: Place | None = None
    peers: Mapping[str, Peer] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()

    @property
    def suspends(self) -> bool:
        """No stage may run: the spec says so, or the chain is being deleted."""
        return bool(self.plan.chain.suspended_by)

    @property
    def was_edited(self) -> bool:
        """The spec was edited since the status was written.

        An operator of another release, or with another default image, would give Jobs other names; that alone is no
        reason to run anything again.
        """
        # The API server raises `generation` at each edit of the spec, but not when status or labels are written.
        return self.previous.observed_generation != self.plan.chain.metadata.generation

    @property
    def has_ended(self) -> bool:
        """The status says that the chain succeeded or failed."""
        # An invalid spec makes the phase Failed too, but the Jobs of the chain run on.
        is_invalid = any(condition.reason == INVALID_SPEC for condition in self.previous.conditions)
        return self.previous.phase in ("Failed", "Succeeded") and not is_invalid

    @property
    def ended_before_upgrade(self) -> bool:
        """The chain ended under a release that gave a vertex another digest, and the user has asked for nothing since.

        By its new digests none of its stages is committed, so an upgrade would train all such chains again at once.
        """
        if not self.has_ended or self.was_edited or self._is_retried:
            return False
        own = self.previous.stages
        # Without a Job, a stage has failed because the API server refused it, and is tried again all the time.
        goes_on = any(entry.phase == "Failed" and entry.job is None for entry in own)
        known = {entry.name: entry.digest for entry in self.previous.entries}
        # A verdict without a control that has failed has another digest in the same release too (verdict_step.py).
        stages = [stage for stage in self.plan.vertices if not stage.is_verdict]
        return not goes_on and any(known.get(stage.name, stage.digest) != stage.digest for stage in stages)

    @property
    def _is_retried(self) -> bool:
        """Whether the user asks for a stage that can be tried again, and not only for one that does not exist."""
        phases = {entry.name: entry.phase for entry in self.previous.entries}
        return any(self._retry.committed_too or phases[name] == "Failed" for name in self.retried & phases.keys())

    @property
    def retried(self) -> frozenset[str]:
        """Names of the stages that the user asks to try again; the status of this look records the request."""
        return self._retry.stages

    @property
    def trained_again(self) -> frozenset[str]:
        """Those of them that run again even if they are committed: neither status nor Jobs count."""
        if not self._retry.committed_too:
            return frozenset()
        # The status may be older than the Jobs, after a conflict for example. Then the request was handled already.
        return self._retry.stages - {job.stage for job in self.observed.jobs if self.is_of_request(job)}

    def is_of_request(self, job: ObservedJob) -> bool:
        """Whether a Job was created after the user's last request to run stages again."""
        return bool(job.retry) and job.retry == annotated_retry(self.plan.chain.metadata.annotations)

    @property
    def _retry(self) -> RetryRequest:
        return open_retry(self.plan.chain.metadata.annotations, self.previous.handled_retry)

    def waits_for_others(self, stage: PlannedStage) -> tuple[str, Admission] | None:
        """Why a stage waits for other chains although its own chain is ready: the message, and what status calls it."""
        peer = self.peer_of(stage)
        # In the same queue the Job of the peer is first. In another one it may wait for ever.
        if peer is not None and peer.claim.queue in ("", stage.queue_name):
            return peer.message, "WaitingForPeer"
        # Last, so that no chain is in line that could not start.
        return None if self.turn is None else (self.turn.message, "WaitingForTurn")

    def resume_waits_for(self, job: ObservedJob) -> tuple[str, Admission] | None:
        """The same for a Job that this operator suspended and may not resume yet."""
        stage = self.plan.stage(job.stage)
        if stage is None or self.suspends or job.queue or job.exports_only or not job.noted_suspended:
            return None
        # A chain whose pods have not stopped yet keeps its turn.
        return self.waits_for_others(stage)

    def peer_of(self, stage: PlannedStage) -> Peer | None:
        """Another chain that runs the same stage. A verdict is made for each chain."""
        return None if stage.is_verdict else self.peers.get(digest_label(stage.digest))

    def has_timeout(self, job: ObservedJob) -> bool:
        """Whether the stage of a Job has a `timeout`, so that its run time counts."""
        stage = self.plan.stage(job.stage)
        return stage is not None and stage.timeout_s is not None

    def is_wanted(self, job: ObservedJob) -> bool:
        """Whether the Job is of a vertex as the spec has it now."""
        return is_of_plan(self.plan, job)

    def wanted_unfinished_jobs(self) -> list[ObservedJob]:
        """The Jobs of the spec's vertices that run, or will run a pod."""
        return [job for job in self.observed.jobs if not job.is_finished and not job.deleting and self.is_wanted(job)]

    def jobs_of(self, stage: PlannedStage) -> list[ObservedJob]:
        """The Jobs of this very stage, of whatever image or placement."""
        wanted = (stage.name, digest_label(stage.digest))
        return [job for job in self.observed.jobs if (job.stage, job.digest) == wanted]

    def unfinished_jobs_of(self, stage: PlannedStage) -> list[ObservedJob]:
        """Those that run, or will run a pod."""
        return [job for job in self.jobs_of(stage) if not job.is_finished and not job.deleting]

    def training_jobs_of(self, stage: PlannedStage) -> list[ObservedJob]:
        """The same without the Job that exports the committed stage."""
        return [job for job in self.unfinished_jobs_of(stage) if not job.exports_only]

    def asks_for_another(self, stage: PlannedStage, job: ObservedJob) -> bool:
        """Whether the chain was edited so that it asks for another Job: not only an operator with another default."""
        if not job.spec_hash:
            return self.was_edited
        chain = self.plan.chain
        return job.spec_hash not in {spec_hash(chain, stage, timeout_s=time) for time in (None, stage.timeout_s)}

    def is_replaced(self, stage: PlannedStage, job: ObservedJob, *, wanted: str) -> bool:
        """Whether an edit asks for another Job of a stage, and the pod of the present one has not started.

        It waits for a node, an image, a Secret or the end of a crash's backoff. The edit may be the correction, and
        deleting a Job that has not started loses nothing.

        Args:
            wanted: name of the Job that the spec asks for now; empty if none can be built.
        """
        # Another name with the same digest is another image or placement. The result would be the same, so a pod that
        # has started is not stopped for it.
        return wanted not in ("", job.name) and not self.has_started(job) and self.asks_for_another(stage, job)

    def previous_entry(self, stage: PlannedStage) -> StageStatus | None:
        """What status says of this very stage; None when it describes another digest."""
        entry = self.previous.stage_named(stage.name)
        is_current = entry is not None and entry.digest == stage.digest and stage.name not in self.trained_again
        return entry if is_current else None

    def entry_of(self, stage: PlannedStage, job: ObservedJob) -> StageStatus | None:
        """What status says of this very Job; an earlier one may have had the same name."""
        entry = self.previous_entry(stage)
        return entry if entry and _is_about(entry, job) else None

    def is_over(self, job: ObservedJob) -> bool:
        """Whether the pod of a Job has succeeded, so that no other will start.

        The Job controller says so about a second later. Of a group, it may still replace another pod until it has seen
        the success of node 0.
        """
        pods = self.observed.pods_of(job)
        return (
            job.nodes == 1
            and any(pod.phase == "Succeeded" for pod in pods)
            and all(pod.is_over for pod in pods)
            and not job.deleting
        )

    def has_succeeded(self, job: ObservedJob) -> bool:
        """Whether the pod of node 0 has succeeded, which has the answer."""
        return any(pod.is_leader and pod.phase == "Succeeded" for pod in self.observed.pods_of(job))

    def has_started(self, job: ObservedJob) -> bool:
        """Whether the pods of the Job have run and none waits to start, so that the stage may train.

        A pod that has succeeded counts before the Job controller counts it: deleting the Job would lose its answer.
        """
        pods = self.observed.pods_of(job)
        if self.has_succeeded(job):
            return True
        # While one pod waits, the others of a group wait for it, and nothing is lost if they are stopped.
        ran = any(pod.running or pod.phase == "Running" for pod in pods)
        return ran and not any(pod.phase == "Pending" and not pod.deleting for pod in pods)

    def leaders_of(self, job: ObservedJob) -> list[ObservedPod]:
        """Pods of node 0, oldest first: of a Job on one node, all of them."""
        return [pod for pod in self.observed.pods_of(job) if pod.is_leader]

    def pods_so_far(self, job: ObservedJob) -> frozenset[str]:
        """Short UIDs of the Job's pods of node 0; the name of a trainer's attempt begins with the UID of its pod."""
        last = self._last_pod_in_status(job)
        return job.noted_pods | {pod.short_uid for pod in self.leaders_of(job)} | ({last} if last else set())

    def last_pod(self, job: ObservedJob) -> str | None:
        """Short UID of the newest pod of node 0, also if it is gone."""
        leader = next(reversed(self.leaders_of(job)), None)
        return self._last_pod_in_status(job) if leader is None else leader.short_uid

    def _last_pod_in_status(self, job: ObservedJob) -> str | None:
        own = (entry.pod_uid for entry in self.previous.entries if _is_about(entry, job))
        return next(own, None)

    def attempt(self, stage: PlannedStage, job: ObservedJob) -> int:
        """How many pods node 0 of the Job has had, evicted and deleted ones included."""
        before = self.entry_of(stage, job)
        known = before.attempt if before else 0
        # Each source misses some: the Job controller does not count evicted pods, deleted pods are not listed, and
        # status has only what an earlier reconcile saw.
        counted = job.active + job.failed + job.succeeded if job.nodes == 1 else 0
        return max(known, counted, len(self.pods_so_far(job)))

    def has_later_pod(self, stage: PlannedStage, job: ObservedJob) -> bool:
        """Whether node 0 of the Job has another pod than when the status was written."""
        before = self.entry_of(stage, job)
        return before is not None and before.attempt < self.attempt(stage, job)

    def answer_of(self, stage: PlannedStage, job: ObservedJob) -> tuple[Committed, ObservedPod] | None:
        """The answer of a trainer that committed the stage, however its pod and the Job ended.

        A trainer may be killed while it exports what it has committed, a sidecar may fail, or the timeout expire.
        """
        for pod in reversed(self.leaders_of(job)):
            answer = pod.end.answer if pod.end else None
            if isinstance(answer, Committed) and answer.digest == stage.digest:
                return answer, pod
        return None


def _is_about(entry: StageStatus, job: ObservedJob) -> bool:
    # A Job that was deleted to retry a stage is created again under the same name, so the time tells them apart.
    return entry.job == job.name and entry.started_at == job.created_at


def is_of_plan(plan: Plan, job: ObservedJob) -> bool:
    """Whether the Job is of a vertex of the plan."""
    # The digest of a verdict also depends on which controls have failed (verdict_step.py).
    if plan.verdict is not None and job.stage == plan.verdict.name:
        return True
    # By name and digest: an edit of the image or placement keeps both, and the Job is still wanted.
    return (job.stage, job.digest) in {(stage.name, digest_label(stage.digest)) for stage in plan.vertices}
