"""Which ends of a pod count against a stage, and what to call the end of one that failed.

The table of design.md, section 4, as a podFailurePolicy and as sentences. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distillchain_api.answer import Failed, fit
from distillchain_api.failures import (
    EXIT_CODE,
    EXIT_INTERRUPTED,
    FATAL_EXIT_CODES,
    OOM_KILLED_EXIT_CODE,
    FailureClass,
)
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
    {"CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName"}
)
"""Waiting reasons of a container that pass only when somebody does something."""

CLASS_BY_EXIT_CODE = {code: failure_class for failure_class, code in reversed(EXIT_CODE.items())}
"""Of two classes with one exit code the first of the table: all that can be told without the trainer's own answer."""


@dataclass(frozen=True)
class Diagnosis:
    """Why a stage failed, or will not start: a row of docs/failures.md and a sentence."""

    failure_class: FailureClass
    message: str


def diagnose(job: ObservedJob, pods: list[ObservedPod]) -> Diagnosis:
    """Why a failed Job failed: the trainer's own sentence where there is one."""
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


def is_stuck(pod: ObservedPod) -> bool:
    """Whether the pod waits for something that only a person can give."""
    return not pod.is_over and pod.waiting_reason in STUCK_REASONS


def describe_waiting(pod: ObservedPod) -> str:
    """What an unfinished pod waits for, in one sentence; empty when it runs."""
    if pod.running:
        return ""
    if pod.unschedulable:
        return fit(f"pod {pod.name} waits for a node: {pod.unschedulable}")
    if pod.waiting_reason in STUCK_REASONS:
        return fit(f"pod {pod.name} cannot start: {pod.waiting_reason}: {pod.waiting_message}".rstrip(": "))
    return f"pod {pod.name} is starting"
