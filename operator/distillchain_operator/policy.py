"""Which ends of a pod count against a stage, and what to call the end of one that failed.

The table of design.md, section 4, as a podFailurePolicy and as sentences. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from distillchain_api.failures import (
    EXIT_CODE,
    EXIT_INTERRUPTED,
    FATAL_EXIT_CODES,
    OOM_KILLED_EXIT_CODE,
    FailureClass,
)
from distillchain_api.wire.answer import Failed, fit
from distillchain_operator.labels import TRAINER_CONTAINER
from distillchain_operator.observed import ObservedJob, ObservedPod

POD_FAILURE_POLICY: dict[str, Any] = {
    # The first rule that fits decides. Disruption stands first: what a pod says while it is being thrown out of its
    # node (no network, no store) must not end the chain.
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "Ignore",
            "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "In", "values": [EXIT_INTERRUPTED]},
        },
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "In", "values": list(FATAL_EXIT_CODES)},
        },
    ]
}

STUCK_REASONS = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",  # the kubelet says it and ImagePullBackOff by turns
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Waiting reasons of a container that pass only when somebody does something."""
LONG = timedelta(minutes=2)  # for a pod to start in; an image of 6 GB may take longer, and is worth a look too
OVERDUE = timedelta(minutes=3)  # for a kubelet to tell that a pod has stopped; slow volumes take a minute or two

CLASS_BY_EXIT_CODE = {code: failure_class for failure_class, code in reversed(EXIT_CODE.items())}
"""Of two classes with one exit code the first of the table: all that can be told without the trainer's own answer."""


@dataclass(frozen=True)
class Diagnosis:
    """Why a stage failed, or will not start: a row of docs/failures.md and a sentence."""

    failure_class: FailureClass
    message: str


@dataclass(frozen=True)
class PodNote:
    """A sentence about a pod that is not over."""

    message: str
    needs_person: bool = False
    """It waits for something that does not come by itself."""


def diagnose(job: ObservedJob, pods: list[ObservedPod], *, waited_for: str = "") -> Diagnosis:
    """Why a failed Job failed: the trainer's own sentence where there is one.

    Args:
        waited_for: what status last said of a Job whose trainer never told progress; the Job controller deletes the
            pods of a Job whose time is up.
    """
    if job.reason == "DeadlineExceeded" and waited_for:
        return Diagnosis(
            FailureClass.DEADLINE_EXCEEDED,
            fit(f"did not get to train within its timeout of {job.deadline_s} s; it was last seen so: {waited_for}"),
        )
    if job.reason == "DeadlineExceeded":
        return Diagnosis(
            FailureClass.DEADLINE_EXCEEDED,
            f"ran longer than its timeout of {job.deadline_s} s; raise timeout: training goes on from the saved state",
        )
    last = next((pod for pod in reversed(pods) if pod.phase == "Failed"), None)
    if last is None:
        return Diagnosis(FailureClass.CRASHED, _without_pods(job))
    found = diagnose_pod(last)
    if job.reason == "BackoffLimitExceeded" and job.failed > 1:
        return Diagnosis(found.failure_class, fit(f"{found.message} (the last of {job.failed} failed attempts)"))
    return found


def _without_pods(job: ObservedJob) -> str:
    why = ": ".join(filter(None, (job.reason, job.message)))
    return f"Job {job.name} failed and its pods are gone ({why or 'no reason given'}); delete the Job to try again"


def diagnose_pod(pod: ObservedPod) -> Diagnosis:
    """Why a failed pod failed."""
    end = pod.end
    if pod.broken_container and (end is None or end.exit_code == 0):
        name, where = pod.broken_container, f"kubectl logs {pod.name} -c {pod.broken_container}"
        return Diagnosis(FailureClass.CRASHED, fit(f"container {name} of pod {pod.name} {pod.broken_how}; see {where}"))
    if end is None:
        why = pod.rejected or pod.disrupted or "no reason given"
        return Diagnosis(FailureClass.POD_REJECTED, fit(f"pod {pod.name} was not run: {why}"))
    if isinstance(end.answer, Failed):
        return Diagnosis(end.answer.failure_class, end.answer.message)
    if end.reason == "OOMKilled":
        return Diagnosis(
            FailureClass.OUT_OF_MEMORY,
            f"pod {pod.name} was OOMKilled (exit code {end.exit_code}): it wanted more than its memory limit; "
            "lower training.batchSize and raise gradientAccumulation, or raise resources.limits.memory",
        )
    if end.exit_code == OOM_KILLED_EXIT_CODE:
        return Diagnosis(
            FailureClass.CRASHED, f"pod {pod.name} was killed (exit code {end.exit_code}); see kubectl logs {pod.name}"
        )
    failure_class = CLASS_BY_EXIT_CODE.get(end.exit_code, FailureClass.CRASHED)
    last_words = f": {end.message.strip()}" if end.message.strip() else ""
    return Diagnosis(
        failure_class,
        fit(f"pod {pod.name} ended with exit code {end.exit_code}{last_words}; see kubectl logs {pod.name}"),
    )


def lasts_long(since: str, *, now: datetime) -> bool:
    """Whether this moment, as Kubernetes writes it, is a while ago."""
    return bool(since) and now - datetime.fromisoformat(since) > LONG


def overdue_in(pod: ObservedPod, *, now: datetime) -> timedelta | None:
    """In what time from now a pod that does not go needs a person; None for one that need not go."""
    if pod.is_over or not pod.stop_by or not pod.node:
        return None
    return datetime.fromisoformat(pod.stop_by) + OVERDUE - now


def describe_pod(pod: ObservedPod, *, now: datetime) -> PodNote | None:
    """What is to be said of an unfinished pod; None when its trainer runs and nothing is amiss."""
    overdue = overdue_in(pod, now=now)
    if overdue is not None and overdue <= timedelta():
        return PodNote(
            f"node {pod.node} does not confirm that pod {pod.name} has stopped; if the machine is off: kubectl taint "
            f"nodes {pod.node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or kubectl delete pod "
            f"{pod.name} --force",
            needs_person=True,
        )
    if pod.deleting:
        return PodNote(f"pod {pod.name} is stopping" + (f" ({pod.disrupted})" if pod.disrupted else ""))
    broken = _cannot_start(pod)
    if pod.running:
        return PodNote(broken) if broken else None
    if pod.end is not None:
        names = ", ".join(pod.others_running)
        left = f"container {names} of pod {pod.name} still runs" if names else f"pod {pod.name} is ending"
        return PodNote(fit(f"its trainer has ended, {broken or left}"), needs_person=bool(broken))
    if broken:
        return PodNote(broken, needs_person=True)
    if pod.unschedulable:
        return PodNote(fit(f"pod {pod.name} waits for a node: {pod.unschedulable}"))
    if lasts_long(pod.created_at, now=now):
        return PodNote(f"pod {pod.name} has not started yet; kubectl describe pod {pod.name} says why")
    return PodNote(f"pod {pod.name} is starting")


def _cannot_start(pod: ObservedPod) -> str:
    stuck = next((container for container in pod.waiting if container.reason in STUCK_REASONS), None)
    if stuck is None:
        return ""
    return fit(f"container {stuck.name} of pod {pod.name} cannot start: {stuck.reason}: {stuck.message}".rstrip(": "))
