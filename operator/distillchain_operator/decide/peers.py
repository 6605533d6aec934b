"""Chains of one namespace and store that have the same stage: one of them trains it, the others wait for it. Pure.

A chain claims a stage as long as it has a Job for it that may train, or pods that still stop. A chain that is
suspended, stalled or in a pause, or that waits itself, has no claim. So nobody waits for a chain that waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_api.retry_request import annotated_retry, parse_retry
from distillchain_operator.decide.actions import Action, CreateJob, DeleteJob, SetSuspend
from distillchain_operator.jobs.labels import DIGEST_LABEL
from distillchain_operator.jobs.observed import Observed, ObservedJob


@dataclass(frozen=True)
class Claim:
    """That a chain runs a stage.

    Attributes:
        stage: its name in that chain.
        since: when its Job was created; empty if it has none yet, or none any more.
        queue: of Kueue, in which the Job waits; empty: it may run.
        is_again: the user lets the stage run again although it is committed.
    """

    stage: str
    since: str = ""
    queue: str = ""
    is_again: bool = False


@dataclass(frozen=True)
class Peer:
    """A chain that has claimed a stage.

    Attributes:
        is_older: of the two chains.
    """

    chain: str
    claim: Claim
    is_older: bool

    @property
    def message(self) -> str:
        """For users: what a chain waits for."""
        does = f"waits in queue {self.claim.queue} with" if self.claim.queue else "runs"
        return f"waiting for chain {self.chain}, which {does} the same stage ({self.claim.stage}), to adopt its commit"

    def goes_before(self, job: ObservedJob) -> bool:
        """Whether it has the older Job; of Jobs of the same second, that of the older chain."""
        since = self.claim.since
        return bool(since) and (since < job.created_at or (since == job.created_at and self.is_older))


def claims_of(observed: Observed, status: ChainStatus, actions: Iterable[Action] = ()) -> dict[str, Claim]:
    """What a chain claims once these actions are done, by digest in the form of the label.

    Args:
        status: after the actions.
        actions: without those that the API server has refused.
    """
    actions = tuple(actions)
    deleted = {action.uid for action in actions if isinstance(action, DeleteJob)}
    resumed = {action.uid for action in actions if isinstance(action, SetSuspend) and not action.suspend}
    claims: dict[str, Claim] = {}
    for job in sorted(observed.jobs, key=lambda job: (job.created_at, job.name)):
        if job.uid in resumed:
            job = replace(job, suspend_wanted=False)
        claim = _claim_of(observed, status.stage_named(job.stage), job, is_deleted=job.uid in deleted)
        # A Job that may run comes before one that Kueue holds.
        if claim is not None and (job.digest not in claims or claims[job.digest].queue > claim.queue):
            claims[job.digest] = claim
    for action in actions:
        if isinstance(action, CreateJob) and not action.is_export:
            metadata = action.job["metadata"]
            is_again = _is_again(annotated_retry(metadata.get("annotations")), action.stage)
            claims.setdefault(metadata["labels"][DIGEST_LABEL], Claim(action.stage, is_again=is_again))
    return claims


def _claim_of(observed: Observed, entry: StageStatus | None, job: ObservedJob, *, is_deleted: bool) -> Claim | None:
    left = [pod for pod in observed.pods_of(job) if not pod.is_over]
    # A pod that waits for a Secret does not keep others waiting; one that runs may train.
    is_stuck = entry is not None and needs_user(entry) and not any(pod.running for pod in left)
    if job.exports_only or is_stuck:
        return None
    is_again = _is_again(job.retry, job.stage)
    if not (job.is_finished or job.deleting or is_deleted):
        if not job.suspend_wanted:
            return Claim(job.stage, job.created_at, is_again=is_again)
        if job.queue:
            return Claim(job.stage, job.created_at, job.queue, is_again)
    # Its trainer still saves its state, and the next one continues from it. A deleted Job exists until its pods have
    # stopped, which the caches may not know yet; a Job that is suspended as well has no pods.
    is_leaving = (job.deleting or is_deleted) and not job.suspend_wanted
    return Claim(job.stage, is_again=is_again) if (is_leaving or left) and not job.is_finished else None


def _is_again(request: str, stage: str) -> bool:
    """Whether a Job that was created after this request of the user runs its stage although it is committed."""
    retry = parse_retry(request)
    return retry.committed_too and stage in retry.stages


def needs_user(entry: StageStatus) -> bool:
    """Whether a stage does not continue by itself: it has failed, or its pod waits for something such as a Secret."""
    return entry.phase == "Failed" or (entry.phase != "Committed" and entry.failure_class is not None)
