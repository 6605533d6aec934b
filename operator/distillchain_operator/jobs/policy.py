"""Which pod failures count against a stage's retries, and how a failure is described. Pure.

The exit codes of distillchain_api.failures as a podFailurePolicy and as messages.
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
from distillchain_operator.jobs.labels import TRAINER_CONTAINER
from distillchain_operator.jobs.observed import ObservedJob, ObservedPod

POD_FAILURE_POLICY: dict[str, Any] = {
    # The first rule that matches decides. Disruption comes first: an exit code from a pod that is being evicted (no
    # network, no store) must not fail the chain.
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        # After SIGTERM the trainer has saved its state and resumes from it, so this is no crash and uses no retry.
        {
            "action": "Ignore",
            "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "In", "values": [EXIT_INTERRUPTED]},
        },
        # A retry would fail in the same way until the user changes something.
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "In", "values": list(FATAL_EXIT_CODES)},
        },
    ]
}

STUCK_REASONS = frozenset(
    {
        "CrashLoopBackOff",  # of a sidecar that starts before the trainer (an init container that is always restarted)
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",  # the kubelet alternates between it and ImagePullBackOff
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Reasons why a container waits that do not go away without the user."""
# Guesses. A pod starts within two minutes unless it pulls an image of several GB, and a kubelet confirms within three
# minutes that a pod has stopped; slow volumes take one or two.
LONG = timedelta(minutes=2)
OVERDUE = timedelta(minutes=3)

NOTE_BYTES = 512  # for the end of an earlier pod while the next one runs

CLASS_BY_EXIT_CODE = {code: failure_class for failure_class, code in reversed(EXIT_CODE.items())}
"""If two classes share an exit code: the first one in the table. Only the trainer's own answer tells them apart."""


@dataclass(frozen=True)
class Diagnosis:
    """Why a stage failed or does not start: a class of docs/failures.md and a message."""

    failure_class: FailureClass
    message: str


@dataclass(frozen=True)
class PodNote:
    """The state of an unfinished pod."""

    message: str
    needs_user: bool = False
    """It waits for something that does not happen without the user."""


def diagnose(job: ObservedJob, pods: list[ObservedPod], *, waited_for: str = "") -> Diagnosis:
    """Why a failed Job failed, in the trainer's own words if it answered.

    Args:
        waited_for: the last status message of a Job whose trainer never reported progress. The Job controller deletes
            the pods of a Job that exceeds its deadline, so they cannot be asked.
    """
    if job.reason == "DeadlineExceeded" and waited_for:
        return Diagnosis(
            FailureClass.DEADLINE_EXCEEDED,
            fit(f"training did not start within the timeout of {job.deadline_s} s; last known state: {waited_for}"),
        )
    if job.reason == "DeadlineExceeded":
        return Diagnosis(
            FailureClass.DEADLINE_EXCEEDED,
            f"ran longer than its timeout of {job.deadline_s} s; raise timeout: training resumes from the saved state",
        )
    decisive = _decisive_pod(job, pods)
    if decisive is None:
        return Diagnosis(FailureClass.CRASHED, _without_pods(job))
    found = diagnose_pod(decisive)
    # A Job that a fatal exit code failed has the reason PodFailurePolicy: there, earlier attempts did not matter.
    # The Job controller also counts the pods of a group that it stops when the Job fails.
    crashes = min(job.failed, job.retries + 1)
    if job.reason == "BackoffLimitExceeded" and crashes > 1:
        return Diagnosis(found.failure_class, fit(f"{found.message} (the last of {crashes} failed attempts)"))
    return found


def _decisive_pod(job: ObservedJob, pods: list[ObservedPod]) -> ObservedPod | None:
    """The pod that failed the Job: the newest failed one, because an older one was replaced.

    When one pod of a group fails, the others end too. Most of them end as interrupted, and a rank that noticed too late
    may have crashed in a collective.
    """
    failed = [pod for pod in pods if pod.phase == "Failed"]
    counted = [pod for pod in failed if not pod.disrupted and not (pod.end and pod.end.is_interruption)] or failed
    fatal = [pod for pod in counted if pod.end and pod.end.exit_code in FATAL_EXIT_CODES]
    candidates = (fatal if job.reason == "PodFailurePolicy" else []) or counted
    return candidates[-1] if candidates else None


def _without_pods(job: ObservedJob) -> str:
    why = ": ".join(filter(None, (job.reason, job.message)))
    return f"Job {job.name} failed and its pods were deleted ({why or 'no reason given'})"


def diagnose_pod(pod: ObservedPod) -> Diagnosis:
    """Why a failed pod failed."""
    end = pod.end
    # The trainer did not fail, so the pod failed because of this container.
    if pod.broken_container and (end is None or end.exit_code == 0):
        name, where = pod.broken_container, f"kubectl logs {pod.name} -c {pod.broken_container}"
        return Diagnosis(FailureClass.CRASHED, fit(f"container {name} of pod {pod.name} {pod.broken_how}; see {where}"))
    if end is None:
        why = pod.rejected or pod.disrupted or "no reason given"
        return Diagnosis(FailureClass.POD_REJECTED, fit(f"pod {pod.name} did not run: {why}"))
    # The trainer knows more than its exit code says, which several classes share.
    if isinstance(end.answer, Failed):
        return Diagnosis(end.answer.failure_class, end.answer.message)
    if end.reason == "OOMKilled":
        return Diagnosis(
            FailureClass.OUT_OF_MEMORY,
            f"pod {pod.name} was OOMKilled (exit code {end.exit_code}): it exceeded its memory limit; lower "
            "microBatchSize (the digest stays the same), or raise resources.limits.memory",
        )
    # 137 is any SIGKILL, such as the end of the grace period. Only the reason OOMKilled proves a lack of memory.
    if end.exit_code == OOM_KILLED_EXIT_CODE:
        # The kubelet knows more if it has lost the container, as after a restart of the node, or ended the pod itself.
        cause = f"{end.reason}: {end.message}" if end.reason == "ContainerStatusUnknown" else pod.rejected
        how = f"was killed (exit code {end.exit_code}){f' on node {pod.node}: {cause}' if cause else ''}"
        return Diagnosis(FailureClass.CRASHED, fit(f"pod {pod.name} {how}; see kubectl logs {pod.name}"))
    failure_class = CLASS_BY_EXIT_CODE.get(end.exit_code, FailureClass.CRASHED)
    # A trainer that is killed after its commit has answered already.
    last_words = f": {end.message.strip()}" if end.message.strip() and end.answer is None else ""
    return Diagnosis(
        failure_class,
        fit(f"pod {pod.name} ended with exit code {end.exit_code}{last_words}; see kubectl logs {pod.name}"),
    )


def describe_end(pod: ObservedPod) -> str:
    """How a pod ended that did not crash: evicted, interrupted or refused by its node."""
    if pod.disrupted:
        # The kubelet's message names the cause, such as low ephemeral storage; the condition has one word.
        return fit(f"the last pod was evicted from node {pod.node}: {pod.rejected or pod.disrupted}", NOTE_BYTES)
    if pod.was_refused:
        return fit(f"node {pod.node} refused pod {pod.name}: {pod.rejected}", NOTE_BYTES)
    return fit(f"the last one: {diagnose_pod(pod).message}", NOTE_BYTES)


def long_in(since: str, *, now: datetime) -> timedelta | None:
    """The time from now until a moment, as Kubernetes writes it, is LONG ago; None for an empty one."""
    return datetime.fromisoformat(since) + LONG - now if since else None


def is_long_ago(since: str, *, now: datetime) -> bool:
    """Whether a moment is LONG ago; False for an empty one."""
    left = long_in(since, now=now)
    return left is not None and left <= timedelta()


def overdue_in(pod: ObservedPod, *, now: datetime) -> timedelta | None:
    """The time from now until a pod that does not stop needs the user; None for a pod that need not stop."""
    # A pod without a node is deleted at once, because no kubelet has to confirm that it has stopped.
    if pod.is_over or not pod.stop_by or not pod.node:
        return None
    return datetime.fromisoformat(pod.stop_by) + OVERDUE - now


def lingers_in(pod: ObservedPod, *, now: datetime) -> timedelta | None:
    """The time from now until a pod has kept its GPU for too long after its trainer; None for a pod that does not."""
    if pod.is_over or pod.deleting or pod.end is None:
        return None
    return long_in(pod.end.finished_at, now=now)


def describe_pod(pod: ObservedPod, *, now: datetime) -> PodNote | None:
    """The state of an unfinished pod; None when its trainer runs without a problem."""
    overdue = overdue_in(pod, now=now)
    if overdue is not None and overdue <= timedelta():
        return PodNote(
            f"node {pod.node} does not confirm that pod {pod.name} has stopped; if the machine is off: kubectl taint "
            f"nodes {pod.node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or kubectl delete pod "
            f"{pod.name} --force",
            needs_user=True,
        )
    if pod.deleting:
        return PodNote(f"pod {pod.name} is stopping" + (f" ({pod.disrupted})" if pod.disrupted else ""))
    broken = _cannot_start(pod)
    # A sidecar that cannot start does not stop the trainer, so it is named and does not stall the chain.
    if pod.running:
        return PodNote(broken) if broken else None
    # The Job finishes only when every container has ended, so the next stage waits for this one.
    if pod.end is not None:
        names = ", ".join(pod.others_running)
        left = f"container {names} of pod {pod.name} still runs" if names else f"pod {pod.name} is still stopping"
        left_time = lingers_in(pod, now=now)
        hangs = bool(names) and left_time is not None and left_time <= timedelta()
        if hangs:
            left += (
                f"; to continue: kubectl delete job {pod.job}; an init container with restartPolicy: Always is ended "
                "by Kubernetes"
            )
        return PodNote(fit(f"the trainer has finished, but {broken or left}"), needs_user=bool(broken) or hangs)
    if broken:
        return PodNote(broken, needs_user=True)
    # Not stuck: a node may become free without the user.
    if pod.unschedulable:
        return PodNote(fit(f"pod {pod.name} is waiting for a node: {pod.unschedulable}"))
    if is_long_ago(pod.created_at, now=now):
        return PodNote(f"pod {pod.name} has not started yet; run kubectl describe pod {pod.name} to see why")
    return PodNote(f"pod {pod.name} is starting")


def _cannot_start(pod: ObservedPod) -> str:
    stuck = next((container for container in pod.waiting if container.reason in STUCK_REASONS), None)
    if stuck is None:
        return ""
    return fit(f"container {stuck.name} of pod {pod.name} cannot start: {stuck.reason}: {stuck.message}".rstrip(": "))
