"""One reconcile over Jobs and pods of chain_builders, and short ways to read its decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from chain_builders import CHAIN_UID, a_committed_job, a_failure, a_job, a_pod
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_operator.decide.actions import CreateJob, Decision, DeleteJob
from distillchain_operator.decide.reconcile import reconcile
from distillchain_operator.decide.turns import Place
from distillchain_operator.jobs.labels import INDEX_ANNOTATION, PODS_ANNOTATION
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.jobs.stage_job import JobDefaults
from distillchain_operator.jobs.wanted_jobs import WantedJobs

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def decide(
    plan: Plan,
    *jobs: dict[str, Any],
    pods: tuple[dict[str, Any], ...] = (),
    previous: ChainStatus | None = None,
    image: str | None = None,
    progress: Progress | None = None,
    now: datetime = NOON,
    parts: bool = True,
    turn: Place | None = None,
) -> Decision:
    """One reconcile. The pods are recorded on their Jobs already; recording them has a test of its own.

    Args:
        parts: Jobs on several nodes have their Services and NetworkPolicies.
    """
    for job in jobs:
        own = [p for p in pods if p["metadata"]["labels"]["batch.kubernetes.io/job-name"] == job["metadata"]["name"]]
        own = [p for p in own if p["metadata"]["annotations"].get(INDEX_ANNOTATION, "0") == "0"]
        annotations = job["metadata"].setdefault("annotations", {})
        annotations.setdefault(PODS_ANNOTATION, ",".join(p["metadata"]["uid"][:8] for p in own))
    observed = observe(chain_uid=CHAIN_UID, jobs=jobs, pods=pods)
    if parts:
        kinds = ("NetworkPolicy", "Service")
        observed = replace(observed, parts=frozenset((kind, job.uid) for kind in kinds for job in observed.jobs))
    wanted = WantedJobs(plan, JobDefaults(image))
    before = previous or ChainStatus()
    return reconcile(plan, observed, previous=before, now=now, wanted=wanted, progress=progress, turn=turn)


def created(decision: Decision) -> list[str]:
    """The stages whose Jobs are created."""
    return [action.stage for action in decision.actions if isinstance(action, CreateJob)]


def deleted(decision: Decision) -> list[str]:
    """The names of the Jobs that are deleted."""
    return [action.name for action in decision.actions if isinstance(action, DeleteJob)]


def entry(decision: Decision, stage: str) -> Any:
    return decision.status.stage_named(stage)


def stalled(decision: Decision) -> Any:
    return next(condition for condition in decision.status.conditions if condition.type == "Stalled")


def committed_status(plan: Plan, *stages: str, **commit: Any) -> ChainStatus:
    """The status after these stages were committed by their Jobs."""
    status = ChainStatus()
    jobs, pods = [], []
    for stage in stages:
        job, pod = a_committed_job(plan, stage, **commit)
        jobs.append(job)
        pods.append(pod)
        status = decide(plan, *jobs, pods=tuple(pods), previous=status).status
    return status


def a_failed_job(
    plan: Plan, stage: str, failure_class: FailureClass, *, sentence: str = "it failed", **job: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The failed Job of a stage and its pod with the trainer's answer."""
    planned = plan.stage(stage)
    assert planned is not None
    failed = a_job(plan, stage, condition="Failed", reason="PodFailurePolicy", failed=1, **job)
    message = a_failure(planned, failure_class, sentence).to_json()
    return failed, a_pod(failed, phase="Failed", exit_code=66, message=message)
