"""The one Job of one stage. Same arguments, same bytes: no clock, no lookup.

The user's PodTemplateSpec, laid over the operator's, stays theirs; the container `trainer` is written into it. Whatever
they state about command, image, security and volumes wins over our defaults; labels, work order, credentials, restart
policy and the missing service account token are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distillchain_api import API_VERSION, KIND
from distillchain_api.digests import sha256_of
from distillchain_api.graph import PlannedStage
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.wire.work_order import ATTEMPT_ENV, WORK_ORDER_ENV
from distillchain_operator.labels import CHAIN_LABEL, DIGEST_LABEL, STAGE_LABEL, TRAINER_CONTAINER, digest_label
from distillchain_operator.podtemplate import BadPodTemplate, check_pod_template, overlay
from distillchain_operator.policy import POD_FAILURE_POLICY

MAX_NAME_CHARS = 63  # of a Job's name, which becomes a label of its pods
HASH_CHARS = 10  # 40 bits: among the few Jobs of one chain and stage a clash will not be seen
STAGE_PART_CHARS = 24
TMP = "/tmp"  # noqa: S108 - a volume of the pod's own
TMP_VOLUME = "distillchain-tmp"
USER_ID = 65532  # "nonroot" of distroless images; any other works too: the trainer writes only to /tmp
GRACE_S = 120  # time to save the state of a large student to the store after SIGTERM
COMMAND = ["python", "-m", "distillchain_trainer"]


@dataclass(frozen=True)
class JobDefaults:
    """What the operator gives to stages that do not say it themselves."""

    image: str | None = None
    pod: Mapping[str, Any] = field(default_factory=dict)


NO_DEFAULTS = JobDefaults()


def build_job(chain: DistillationChain, stage: PlannedStage, *, defaults: JobDefaults) -> dict[str, Any]:
    """The Job of a stage.

    Args:
        defaults: the image is used when neither stage nor template nor the pod template names one; what the stage's pod
            says is laid over the pod.
    Raises: BadPodTemplate when the template cannot be written into.
    """
    spec = _job_spec(chain, stage, defaults=defaults)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(chain.name, stage.name, sha256_of(spec)),
            "namespace": chain.metadata.namespace,
            "labels": _labels(chain, stage),
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
        "spec": {"suspend": False, **spec},
    }


def build_probe_pod(job: dict[str, Any]) -> dict[str, Any]:
    """A pod as the Job controller would make it, for a dry run: it finds what only pod admission refuses.

    Its name is always the same: refusals name it, and their text stands in status. Policies against pods that nothing
    controls see the chain as its controller, as no Job is there yet.
    """
    template = job["spec"]["template"]
    # Without blockOwnerDeletion: admission would ask for rights on the chain that only a Job's owner needs.
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


def job_name(chain: str, stage: str, spec_hash: str) -> str:
    """`<chain>-<stage>-<hash>` in 63 characters; a long chain or stage name is cut, the hash keeps it unique."""
    stage_part = stage[:STAGE_PART_CHARS].rstrip("-")
    room = MAX_NAME_CHARS - len(stage_part) - HASH_CHARS - len("--")
    chain_part = chain.replace(".", "-")[:room].rstrip("-")  # a dot would have to stand between letters
    return f"{chain_part}-{stage_part}-{spec_hash[:HASH_CHARS]}"


def _labels(chain: DistillationChain, stage: PlannedStage) -> dict[str, str]:
    return {
        CHAIN_LABEL: chain.name,
        STAGE_LABEL: stage.name,
        DIGEST_LABEL: digest_label(stage.digest),
        "app.kubernetes.io/managed-by": "distillchain",
    }


def _job_spec(chain: DistillationChain, stage: PlannedStage, *, defaults: JobDefaults) -> dict[str, Any]:
    deadline = {"activeDeadlineSeconds": stage.timeout_s} if stage.timeout_s else {}
    return {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": stage.retries,
        **deadline,
        "podFailurePolicy": copy.deepcopy(POD_FAILURE_POLICY),
        # A replacement starts only when its forerunner is gone: never two pods on one stage.
        "podReplacementPolicy": "Failed",
        "template": _pod_template(chain, stage, defaults=defaults),
    }


def _pod_template(chain: DistillationChain, stage: PlannedStage, *, defaults: JobDefaults) -> dict[str, Any]:
    given = stage.pod or {}
    check_pod_template(defaults.pod, "DISTILLCHAIN_POD_TEMPLATE")
    check_pod_template(given, stage.pod_field)
    template = overlay(defaults.pod, given)
    metadata, spec = template.get("metadata") or {}, template.get("spec") or {}
    containers: list[dict[str, Any]] = spec.get("containers") or []
    trainer = next((c for c in containers if c["name"] == TRAINER_CONTAINER), None)
    if trainer is None:
        trainer = {"name": TRAINER_CONTAINER}
        containers.insert(0, trainer)
    mounts, volumes = trainer.get("volumeMounts") or [], spec.get("volumes") or []
    if not any(isinstance(mount, dict) and str(mount.get("mountPath")).rstrip("/") == TMP for mount in mounts):
        mounts = [*mounts, {"name": TMP_VOLUME, "mountPath": TMP}]
        volumes = [*volumes, {"name": TMP_VOLUME, "emptyDir": {}}]
    _write_trainer(trainer, chain, stage, image=defaults.image, mounts=mounts)
    return {
        "metadata": {
            **{key: value for key, value in metadata.items() if key in ("annotations", "labels")},
            "labels": {**(metadata.get("labels") or {}), **_labels(chain, stage)},
        },
        "spec": {
            "terminationGracePeriodSeconds": GRACE_S,
            **spec,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
                **(spec.get("securityContext") or {}),
            },
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": containers,
            "volumes": volumes,
        },
    }


def _write_trainer(
    trainer: dict[str, Any], chain: DistillationChain, stage: PlannedStage, *, image: str | None, mounts: list[Any]
) -> None:
    """Writes ours into the container `trainer` of the user's template."""
    image = stage.image or trainer.get("image") or image
    if not image:
        raise BadPodTemplate(
            f"spec.template.image: missing, and this operator has no default; set it (stage {stage.name} needs it), or "
            "DISTILLCHAIN_TRAINER_IMAGE of the operator"
        )
    own_env = _trainer_env(chain, stage)
    ours = {entry["name"] for entry in own_env}
    given_env = [entry for entry in trainer.get("env") or [] if entry["name"] not in ours]
    stated = {entry["name"] for entry in given_env}
    homes = [entry for entry in _HOME_ENV if entry["name"] not in stated]
    trainer.update(
        image=image,
        env=[*given_env, *homes, *own_env],
        volumeMounts=mounts,
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        securityContext={
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            **(trainer.get("securityContext") or {}),
        },
    )
    if not trainer.get("command") and not trainer.get("args"):
        trainer["command"] = list(COMMAND)
    if stage.resources:
        trainer["resources"] = copy.deepcopy(stage.resources)


# A user ID without a line in /etc/passwd has no name and no home, and libraries ask for both.
_HOME_ENV = (
    {"name": "HOME", "value": TMP},
    {"name": "USER", "value": "trainer"},
)


def _trainer_env(chain: DistillationChain, stage: PlannedStage) -> list[dict[str, Any]]:
    secret = chain.spec.storage.secret_ref
    credentials = (
        [
            _from_secret("AWS_ACCESS_KEY_ID", secret.name),
            _from_secret("AWS_SECRET_ACCESS_KEY", secret.name),
            _from_secret("AWS_SESSION_TOKEN", secret.name, optional=True),
        ]
        if secret
        else []
    )
    return [
        {"name": WORK_ORDER_ENV, "value": _escaped(stage.work_order.to_json())},
        {"name": ATTEMPT_ENV, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}},
        *credentials,
    ]


def _escaped(text: str) -> str:
    """Kubernetes expands $(NAME) in values; a dollar that must stay is doubled."""
    return text.replace("$", "$$")


def _from_secret(name: str, secret: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": name}
    return {"name": name, "valueFrom": {"secretKeyRef": {**reference, "optional": True} if optional else reference}}
