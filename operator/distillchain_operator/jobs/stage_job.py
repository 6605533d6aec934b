"""The Job of one stage. The same arguments give the same bytes: no clock, no lookup.

The user's PodTemplateSpec is merged over the operator's, and the container `trainer` is written into it. What the user
states about command, image, security and volumes takes precedence over the defaults here; labels, work order,
credentials, restart policy and the missing service account token do not depend on the user.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distillchain_api import API_VERSION, KIND
from distillchain_api.digests import sha256_of
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.export import Export
from distillchain_api.resource.job import QUEUE_LABEL
from distillchain_api.resource.parallelism import cuda_devices_of, gpus_of, has_devices, resolve, without_devices
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.retry_request import RETRY_ANNOTATION, annotated_retry
from distillchain_api.wire.work_order import (
    ATTEMPT_ENV,
    CACHE_BYTES_ENV,
    CACHE_ENV,
    GPUS_ENV,
    WORK_ORDER_ENV,
    WorkOrder,
)
from distillchain_operator.jobs.group import join_group
from distillchain_operator.jobs.labels import (
    CHAIN_LABEL,
    DIGEST_LABEL,
    EXPORT_ANNOTATION,
    MANAGED_BY,
    SPEC_ANNOTATION,
    STAGE_LABEL,
    TRAINER_CONTAINER,
    digest_label,
)
from distillchain_operator.jobs.pod_template import overlay
from distillchain_operator.jobs.policy import POD_FAILURE_POLICY

MAX_NAME_CHARS = 63  # of a Job's name, which becomes a label of its pods
HASH_CHARS = 10  # 40 bits: enough for the few Jobs of one chain and stage
STAGE_PART_CHARS = 24
TMP = "/tmp"  # noqa: S108 - a volume of the pod
TMP_VOLUME = "distillchain-tmp"
CACHE = "/distillchain-cache"
CACHE_VOLUME = "distillchain-cache"
SHM = "/dev/shm"  # noqa: S108 - a volume of the pod
SHM_VOLUME = "distillchain-shm"
USER_ID = 65532  # "nonroot" of distroless images; any other works too, because the trainer writes only to /tmp
GRACE_S = 120  # time to save the state of a student to the store after SIGTERM
# A student that needs several processes is larger. The state of a process is at most what its GPU holds, 80 GB on the
# common ones, and a node sends 150 MB a second to a store that is not fast.
GROUP_GRACE_S = 600
COMMAND = ["python", "-m", "distillchain_trainer"]


class MissingImage(ValueError):
    """Neither the chain nor the operator names a trainer image; the message names the field."""


@dataclass(frozen=True)
class JobDefaults:
    """What a stage gets from the operator where the chain does not say it."""

    image: str | None = None
    pod: Mapping[str, Any] = field(default_factory=dict)
    network_policies: bool = True
    """Whether a stage on several nodes gets a NetworkPolicy."""


def build_job(chain: DistillationChain, stage: PlannedStage, *, defaults: JobDefaults) -> dict[str, Any]:
    """The Job of a stage.

    Args:
        defaults: the image is used if neither the stage nor the template nor the pod template names one; the stage's
            pod is merged over the pod.
    Raises: MissingImage.
    """
    spec = _job_spec(chain, stage, defaults=defaults)
    nodes = stage.parallelism.nodes
    queue = {QUEUE_LABEL: stage.queue_name} if stage.queue_name else {}
    # The deadlines count too, although the operator enforces them: editing one retries a stage that failed of it. So
    # does the queue, whose edit replaces a Job that waits in another one.
    # The report that an export renews does not: an edit of a later stage must not start the export again.
    without_report = replace(stage, work_order=stage.work_order.model_copy(update={"last_digest": None}))
    named = spec if stage.work_order.last_digest is None else _job_spec(chain, without_report, defaults=defaults)
    stated = {**named, **_deadlines(stage), **queue}
    name = job_name(chain.name, stage.name, sha256_of(stated), nodes=nodes)
    # After the name, which is part of the address of node 0.
    if nodes > 1:
        join_group(spec, job=name, namespace=chain.metadata.namespace)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            # The hash does not cover the chain's UID: the Job of a deleted chain of this name is a conflict, not a
            # second Job.
            "name": name,
            "namespace": chain.metadata.namespace,
            "labels": {**(stage.job.labels or {}), **queue, **_labels(chain, stage)},
            "annotations": {
                **(stage.job.annotations or {}),
                SPEC_ANNOTATION: spec_hash(chain, stage),
                **({EXPORT_ANNOTATION: "true"} if stage.work_order.export_only else {}),
                **({RETRY_ANNOTATION: request} if (request := annotated_retry(chain.metadata.annotations)) else {}),
            },
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": chain.name,
                    "uid": chain.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        # Kueue lets a Job run once its queue has quota for it, whose pods must not start before.
        "spec": {"suspend": bool(queue), **spec},
    }


def spec_hash(chain: DistillationChain, stage: PlannedStage, *, timeout_s: int | None = None) -> str:
    """A hash over all that the chain says about the Job of a stage.

    Not over its deadlines, which the operator enforces: a Job that waits need not be replaced when one is edited.

    Args:
        timeout_s: of the stage, for the hash as an earlier release computed it, in which Kubernetes enforced it.
    """
    cache, secret = chain.spec.template.cache, chain.spec.storage.secret_ref
    stated = {
        "order": stage.work_order.to_document(),
        "image": stage.image,
        "resources": stage.resources,
        "pod": stage.pod,
        "parallelism": stage.parallelism.to_document(),
        "retries": stage.retries,
        "timeout": timeout_s,
        "cache": cache.to_document() if cache else None,
        "secret": secret.name if secret else None,
        # Only if it is stated: a Job of an earlier release must not look edited.
        **({"job": job} if (job := stage.job.to_document()) else {}),
        **({"queue": stage.queue_name} if stage.queue_name else {}),
    }
    return sha256_of(stated)[:HASH_CHARS]


def build_probe_pod(job: dict[str, Any]) -> dict[str, Any]:
    """A pod as the Job controller would create it, for a dry run: it finds what only pod admission refuses.

    Its name never changes, because refusals name the pod and their text is in status. Its controller is the chain,
    because no Job exists yet and some policies refuse pods that have no controller.
    """
    template = job["spec"]["template"]
    # With blockOwnerDeletion, admission would require rights on the chain that only the owner of a Job needs.
    owners = [{**owner, "blockOwnerDeletion": False} for owner in job["metadata"].get("ownerReferences", [])]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **template["metadata"],
            "name": f"{job['metadata']['name']}-probe",
            "namespace": job["metadata"]["namespace"],
            "ownerReferences": owners,
        },
        "spec": template["spec"],
    }


def job_name(chain: str, stage: str, spec_hash: str, *, nodes: int = 1) -> str:
    """`<chain>-<stage>-<hash>` in 63 characters; long names are truncated, and the hash keeps the result unique.

    With several nodes it is shorter: the host name of the last node, `<job>-255`, has 63 characters at most too.
    """
    stage_part = stage[:STAGE_PART_CHARS].rstrip("-")
    suffix_chars = len(f"-{nodes - 1}") if nodes > 1 else 0
    chain_chars = MAX_NAME_CHARS - len(stage_part) - HASH_CHARS - len("--") - suffix_chars
    chain_part = chain.replace(".", "-")[:chain_chars].rstrip("-")  # a name with a dot before a dash is invalid
    return f"{chain_part}-{stage_part}-{spec_hash[:HASH_CHARS]}"


def _labels(chain: DistillationChain, stage: PlannedStage) -> dict[str, str]:
    return {
        CHAIN_LABEL: chain.name,
        STAGE_LABEL: stage.name,
        DIGEST_LABEL: digest_label(stage.digest),
        **MANAGED_BY,
    }


def _job_spec(chain: DistillationChain, stage: PlannedStage, *, defaults: JobDefaults) -> dict[str, Any]:
    nodes = stage.parallelism.nodes
    return {
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": stage.retries,
        **({"managedBy": stage.job.managed_by} if stage.job.managed_by else {}),
        **(_group_spec(stage) if nodes > 1 else {}),
        "podFailurePolicy": copy.deepcopy(POD_FAILURE_POLICY),
        # A replacement starts only when the pod before it has ended: never two pods on one stage.
        "podReplacementPolicy": "Failed",
        "template": _pod_template(chain, stage, defaults=defaults),
    }


def _deadlines(stage: PlannedStage) -> dict[str, int]:
    """What a stage states of `timeout` and `progressDeadline`."""
    # By the names of an earlier release, in which the first was a field of the Job.
    stated = {"activeDeadlineSeconds": stage.timeout_s, "progressDeadlineSeconds": stage.progress_deadline_s}
    return {name: seconds for name, seconds in stated.items() if seconds}


def _group_spec(stage: PlannedStage) -> dict[str, Any]:
    return {
        "completionMode": "Indexed",
        # The trainer of node 0 has the answer; the others only wait for it.
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        # Only for the delay before a pod is replaced, which then doubles after each failure of its node. Otherwise it
        # doubles after each failed pod: of four pods that end together, the next ones start after 80 s, then 10 min.
        # The crashes of all nodes together are limited by backoffLimit, which is reached first.
        "backoffLimitPerIndex": stage.retries,
    }


def _pod_template(chain: DistillationChain, stage: PlannedStage, *, defaults: JobDefaults) -> dict[str, Any]:
    template = overlay(defaults.pod, stage.pod)
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    containers: list[dict[str, Any]] = spec.get("containers") or []
    trainer = next((c for c in containers if c["name"] == TRAINER_CONTAINER), None)
    if trainer is None:
        trainer = {"name": TRAINER_CONTAINER}
        # First, because kubectl logs and exec choose the first container by default.
        containers.insert(0, trainer)
    mounts, volumes = trainer.get("volumeMounts") or [], spec.get("volumes") or []
    # The root file system is read-only, and the trainer and its libraries need a place to write.
    if not any((mount.get("mountPath") or "").rstrip("/") == TMP for mount in mounts):
        mounts = [*mounts, {"name": TMP_VOLUME, "mountPath": TMP}]
        volumes = [*volumes, {"name": TMP_VOLUME, "emptyDir": {}}]
    if stage.resources:
        trainer["resources"] = copy.deepcopy(stage.resources)
    # An export is made on the CPU, and a GPU that is reserved for it would stand idle.
    if stage.work_order.export_only and trainer.get("resources"):
        trainer["resources"] = without_devices(trainer["resources"])
        spec = _without_unused_claims(spec)
    order = _with_processes(stage, trainer)
    # Nor may the stage's own Job hold a GPU meanwhile, and the next stage wait: another Job exports what it commits.
    if not order.export_only and has_devices(trainer.get("resources") or {}):
        order = order.model_copy(update={"export": Export()})
    several = order.parallelism.processes > 1
    # The processes of a node exchange tensors there. Without a volume, a container has 64 MB of it.
    if several and not any((mount.get("mountPath") or "").rstrip("/") == SHM for mount in mounts):
        mounts = [*mounts, {"name": SHM_VOLUME, "mountPath": SHM}]
        volumes = [*volumes, {"name": SHM_VOLUME, "emptyDir": {"medium": "Memory"}}]
    cache = chain.spec.template.cache
    if cache is not None:
        mounts = [*mounts, {"name": CACHE_VOLUME, "mountPath": CACHE}]
        volumes = [*volumes, {"name": CACHE_VOLUME, **copy.deepcopy(cache.volume)}]
    _write_trainer(trainer, chain, stage, order=order, image=defaults.image, mounts=mounts)
    annotations = {**(stage.job.annotations or {}), **(metadata.get("annotations") or {})}
    return {
        "metadata": {
            "labels": {**(stage.job.labels or {}), **(metadata.get("labels") or {}), **_labels(chain, stage)},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {
            "terminationGracePeriodSeconds": GROUP_GRACE_S if several else GRACE_S,
            **spec,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
                **(spec.get("securityContext") or {}),
            },
            # podFailurePolicy requires it.
            "restartPolicy": "Never",
            # A trainer never calls the API server.
            "automountServiceAccountToken": False,
            "containers": containers,
            "volumes": volumes,
        },
    }


def _without_unused_claims(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of a pod without the claims that no container names: each claim of a pod reserves its devices."""
    containers = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    used = {claim["name"] for c in containers for claim in (c.get("resources") or {}).get("claims") or []}
    left = [claim for claim in spec.get("resourceClaims") or [] if claim["name"] in used]
    others = {key: value for key, value in spec.items() if key != "resourceClaims"}
    return others | ({"resourceClaims": left} if left else {})


def _with_processes(stage: PlannedStage, trainer: dict[str, Any]) -> WorkOrder:
    """The work order with a process for each GPU of the container, also if only the operator's template has GPUs."""
    order = stage.work_order
    if stage.parallelism.processes_per_node is not None:
        return order
    processes = resolve(stage.parallelism, gpus=gpus_of(trainer.get("resources") or {}))
    return order.model_copy(update={"parallelism": processes})


def _write_trainer(
    trainer: dict[str, Any],
    chain: DistillationChain,
    stage: PlannedStage,
    *,
    order: WorkOrder,
    image: str | None,
    mounts: list[Any],
) -> None:
    """Writes image, environment, mounts and security context into the container `trainer`."""
    image = stage.image or trainer.get("image") or image
    if not image:
        raise MissingImage(
            f"spec.template.image: missing for stage {stage.name}, and the operator has no default; set it, or the "
            "operator's DISTILLCHAIN_TRAINER_IMAGE"
        )
    own_env = _trainer_env(chain, order, gpus=cuda_devices_of(trainer.get("resources") or {}))
    own_names = {entry["name"] for entry in own_env}
    users_env = [entry for entry in trainer.get("env") or [] if entry["name"] not in own_names]
    users_names = {entry["name"] for entry in users_env}
    homes = [entry for entry in _HOME_ENV if entry["name"] not in users_names]
    trainer.update(
        image=image,
        env=[*users_env, *homes, *own_env],
        volumeMounts=mounts,
        # The operator reads the answer from this file. FallbackToLogsOnError would put log lines in its place.
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        securityContext={
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            **(trainer.get("securityContext") or {}),
        },
    )
    # Arguments alone belong to the entrypoint of the user's own image.
    if not trainer.get("command") and not trainer.get("args"):
        trainer["command"] = list(COMMAND)


# A user ID without a line in /etc/passwd has neither name nor home, and libraries read both.
_HOME_ENV = (
    {"name": "HOME", "value": TMP},
    {"name": "USER", "value": "trainer"},
)


def _trainer_env(chain: DistillationChain, order: WorkOrder, *, gpus: int) -> list[dict[str, Any]]:
    secret = chain.spec.storage.secret_ref
    credentials = (
        [
            _from_secret("AWS_ACCESS_KEY_ID", secret.name),
            _from_secret("AWS_SECRET_ACCESS_KEY", secret.name),
            # Only temporary credentials have one.
            _from_secret("AWS_SESSION_TOKEN", secret.name, optional=True),
        ]
        if secret
        else []
    )
    return [
        {"name": WORK_ORDER_ENV, "value": _escaped(order.to_json())},
        # The pod's UID: no two attempts write into the same folder of the store.
        {"name": ATTEMPT_ENV, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}},
        *([{"name": GPUS_ENV, "value": str(gpus)}] if gpus else []),
        *credentials,
        *_cache_env(chain),
    ]


def _cache_env(chain: DistillationChain) -> list[dict[str, Any]]:
    cache = chain.spec.template.cache
    if cache is None:
        return []
    limit = [] if cache.max_bytes is None else [{"name": CACHE_BYTES_ENV, "value": str(cache.max_bytes)}]
    return [{"name": CACHE_ENV, "value": CACHE}, *limit]


def _escaped(text: str) -> str:
    """Kubernetes expands $(NAME) in values and reads $$ as one dollar."""
    return text.replace("$", "$$")


def _from_secret(name: str, secret: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": name}
    return {"name": name, "valueFrom": {"secretKeyRef": {**reference, "optional": True} if optional else reference}}
