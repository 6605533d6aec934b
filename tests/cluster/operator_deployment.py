"""Our operator in a pod of a cluster of the tests, from the image that a release brings: as a platform team runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.build_images import Image
from cluster.controlplane import ControlPlane
from cluster.errors import CommandFailed, DidNotHappen
from cluster.operator_process import OPERATOR_NAMESPACE

CHECKOUT = Path(__file__).resolve().parents[2]
DEPLOYMENT = "distillchain-operator"
OPERATOR_PODS = ("-n", OPERATOR_NAMESPACE, "-l", f"app.kubernetes.io/name={DEPLOYMENT}")  # words for kubectl
POD_TEMPLATE = "/etc/distillchain/pod-template.yaml"
READY_TIMEOUT = "60s"  # measured 4


def install_operator(
    control_plane: ControlPlane,
    image: Image,
    *,
    settings: Mapping[str, str],
    pod_template: Mapping[str, Any] | None = None,
) -> None:
    """config/deployment.yaml with this image; returns when its pod runs. The manifests of access are there already.

    Args:
        settings: DISTILLCHAIN_* variables beside those of the manifest, or in their place.
        pod_template: for stages that state no pod of their own; comes as a ConfigMap.
    Raises: DidNotHappen with the pod's state and log.
    """
    deployment = yaml.safe_load((CHECKOUT / "config" / "deployment.yaml").read_text())
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    container["image"] = image.name
    settings = dict(settings)
    if pod_template is not None:
        settings["DISTILLCHAIN_POD_TEMPLATE"] = POD_TEMPLATE
        folder, _, file = POD_TEMPLATE.rpartition("/")
        container["volumeMounts"].append({"name": "pod-template", "mountPath": folder, "readOnly": True})
        spec["volumes"].append({"name": "pod-template", "configMap": {"name": DEPLOYMENT}})
        control_plane.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": DEPLOYMENT, "namespace": OPERATOR_NAMESPACE},
                "data": {file: json.dumps(pod_template)},
            }
        )
    kept = [entry for entry in container["env"] if entry["name"] not in settings]
    container["env"] = kept + [{"name": name, "value": value} for name, value in settings.items()]
    control_plane.apply(deployment)
    rollout = ("rollout", "status", f"deployment/{DEPLOYMENT}", "-n", OPERATOR_NAMESPACE)
    try:
        control_plane.kubectl(*rollout, f"--timeout={READY_TIMEOUT}")
    except CommandFailed as failure:
        raise DidNotHappen(f"waited {READY_TIMEOUT} for the operator's pod\n{describe_operator(control_plane)}") from (
            failure
        )


def remove_operator(control_plane: ControlPlane) -> None:
    """Deletes the Deployment and waits until its pod is gone."""
    control_plane.kubectl(
        *("delete", "deployment", DEPLOYMENT, "-n", OPERATOR_NAMESPACE, "--ignore-not-found"), "--cascade=foreground"
    )


def is_available(control_plane: ControlPlane) -> bool:
    """Whether the Deployment is there and its pod runs."""
    got = control_plane.kubectl(
        *("get", "deployment", DEPLOYMENT, "-n", OPERATOR_NAMESPACE),
        *("-o", "jsonpath={.status.availableReplicas}"),
        check=False,
    )
    return got.returncode == 0 and got.stdout.strip() == "1"


def describe_operator(control_plane: ControlPlane) -> str:
    """State of its pods and the end of their logs, for the message of a failed wait."""
    said = [
        control_plane.kubectl("describe", "pods", *OPERATOR_PODS, check=False).stdout,
        control_plane.kubectl("logs", *OPERATOR_PODS, "--tail=60", check=False).stdout,
    ]
    return "\n".join(said)
