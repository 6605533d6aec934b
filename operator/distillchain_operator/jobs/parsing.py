"""Reads Jobs and pods from Kubernetes' JSON, which goes no further than this module."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from distillchain_api.resource.job import JOB_CONTROLLER, QUEUE_LABEL
from distillchain_api.resource.parallelism import gpus_of
from distillchain_api.retry_request import annotated_retry
from distillchain_api.wire.answer import parse_answer
from distillchain_api.wire.plain_text import on_one_line
from distillchain_operator.jobs.labels import (
    DIGEST_LABEL,
    EXPORT_ANNOTATION,
    INDEX_ANNOTATION,
    JOB_NAME_LABEL,
    PODS_ANNOTATION,
    SPEC_ANNOTATION,
    STAGE_LABEL,
    SUSPENDED_ANNOTATION,
    TRAINER_CONTAINER,
)
from distillchain_operator.jobs.observed import (
    JobState,
    Observed,
    ObservedJob,
    ObservedPod,
    TrainerEnd,
    WaitingContainer,
    of_chain,
)

# The second is the name before Kubernetes 1.27.
JOB_NAME_LABELS = (JOB_NAME_LABEL, "job-name")
UNKNOWN_INDEX = 10**9  # larger than that of any node


def observe(*, chain_uid: str, jobs: Iterable[dict[str, Any]], pods: Iterable[dict[str, Any]]) -> Observed:
    """The Jobs that the chain of this UID controls, and all of the pods, from the API server's JSON."""
    return of_chain(chain_uid, map(parse_job, jobs), map(parse_pod, pods))


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
    # A failed Job has no completionTime.
    finished_at = status.get("completionTime") or decisive.get("lastTransitionTime", "")
    deleted_at, ttl_s = metadata.get("deletionTimestamp", ""), spec.get("ttlSecondsAfterFinished")
    # What a Job that succeeded has answered may be taken back meanwhile: the user discards its commit.
    has_expired = state is JobState.FAILED and _has_expired(finished_at, ttl_s, deleted_at=deleted_at)
    return ObservedJob(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        stage=labels.get(STAGE_LABEL, ""),
        digest=labels.get(DIGEST_LABEL, ""),
        state=state,
        owner_uid=_controller_uid(document),
        deleting=bool(deleted_at) and not has_expired,
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
        finished_at=finished_at,
        nodes=spec.get("completions", 1) if spec.get("completionMode") == "Indexed" else 1,
        active=status.get("active", 0),
        failed=status.get("failed", 0),
        succeeded=status.get("succeeded", 0),
        exports_only=EXPORT_ANNOTATION in annotations,
        retry=annotated_retry(annotations),
        spec_hash=annotations.get(SPEC_ANNOTATION, ""),
        retries=spec.get("backoffLimit", 0),
        ttl_s=ttl_s,
        deadline_s=spec.get("activeDeadlineSeconds"),
        reason=decisive.get("reason", ""),
        message=on_one_line(decisive.get("message", "")),
    )


def _has_expired(finished_at: str, ttl_s: int | None, *, deleted_at: str) -> bool:
    """Whether Kubernetes deletes a Job because its TTL has passed."""
    if not deleted_at or not finished_at or ttl_s is None:
        return False
    return datetime.fromisoformat(deleted_at) - datetime.fromisoformat(finished_at) >= timedelta(seconds=ttl_s)


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
