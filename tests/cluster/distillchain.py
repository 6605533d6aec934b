"""Install distillchain on the cluster of `cluster up`: CRD, RBAC, operator, and the data of examples/cluster in S3.

This is what a platform team does by hand. Afterwards `kubectl apply` is enough to run a chain.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.build_images import Builder
from cluster.errors import PrerequisiteMissing
from cluster.images import HOST_PYTHON_IMAGE, host_python_pod_template
from cluster.operator_deployment import Release
from cluster.operator_process import (
    CHECKOUT,
    OPERATOR_ARGV,
    OPERATOR_NAMESPACE,
    SERVICE_ACCOUNT,
    create_operator_namespace,
    install_manifests,
    operator_environment,
)
from cluster.processes import Processes
from cluster.whole import WholeCluster
from distillchain_api.wire.work_order import ALLOW_CPU_ENV

OPERATOR = "distillchain-operator"
CHAIN_INPUTS = ("data", "models/bert-tiny")  # read by examples/cluster/chain.yaml


def operator_processes(cluster: WholeCluster) -> Processes:
    """The record of the operator's process, if it runs as one. The process outlives this program."""
    return Processes(cluster.directory / "operator", outlive_caller=True)


def install_distillchain(cluster: WholeCluster, *, bucket: str) -> str:
    """Install CRD, RBAC and Secret, start the operator, and upload models and data into the bucket. Idempotent.

    Returns: one sentence that says how the operator runs: in a pod of the image built from this checkout, or, on a
        machine that cannot build images, as a process of this checkout. In the latter case it gives the reason.
    Raises: ClusterError, also if the build fails.
    """
    control_plane = cluster.control_plane
    _apply_secret(cluster)
    # The endpoint is known only now, so it goes into the pod template and not into the example chain.
    endpoint = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "AWS_ENDPOINT_URL_S3": cluster.s3.endpoint,
        "AWS_REGION": cluster.s3.environment()["AWS_REGION"],
    }
    # The GPUs of the node exist only in its status.
    template = host_python_pod_template(environment={**endpoint, ALLOW_CPU_ENV: "1"})
    try:
        builder = Builder()
    except PrerequisiteMissing as missing:
        install_manifests(control_plane)
        _start_operator_process(cluster, template)
        how = f"runs as a process beside the cluster because its image cannot be built here: {missing}"
    else:
        image = builder.build("operator")
        builder.load(image, cluster.node)
        create_operator_namespace(control_plane)
        values = {"operator": {"logFormat": "plain"}, "chains": {"podTemplate": template}}
        release_of(cluster).install(image, trainer_image=HOST_PYTHON_IMAGE, values=values)
        control_plane.restart_controllers()  # so that the garbage collector knows the new kind
        how = f"runs in namespace {OPERATOR_NAMESPACE}, installed by Helm from image {image.name} of this checkout"
    _upload_chain_inputs(cluster, bucket)
    return how


def operator_is_running(cluster: WholeCluster) -> bool:
    """Whether it runs, as a process or in a pod."""
    return operator_processes(cluster).is_running(OPERATOR) or release_of(cluster).is_available()


def release_of(cluster: WholeCluster) -> Release:
    """The operator's Helm release, if it runs in a pod."""
    return Release(cluster.control_plane, "distillchain")


def stop_operator(cluster: WholeCluster) -> None:
    """Stop its process, if there is one. A pod stops with the node."""
    operator_processes(cluster).stop_all()


def _start_operator_process(cluster: WholeCluster, template: dict[str, Any]) -> None:
    processes = operator_processes(cluster)
    if processes.is_running(OPERATOR):
        return
    file = cluster.directory / "pod-template.yaml"
    file.write_text(json.dumps(template))
    kubeconfig = cluster.control_plane.kubeconfig_for(OPERATOR_NAMESPACE, SERVICE_ACCOUNT)
    environment = operator_environment(
        kubeconfig,
        DISTILLCHAIN_TRAINER_IMAGE=HOST_PYTHON_IMAGE,
        DISTILLCHAIN_LOG_FORMAT="plain",
        DISTILLCHAIN_POD_TEMPLATE=str(file),
    )
    processes.start(OPERATOR, OPERATOR_ARGV, environment=environment)


def _apply_secret(cluster: WholeCluster) -> None:
    """Create the S3 credentials for chains in the namespace `default`."""
    cluster.control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-credentials", "namespace": "default"},
            "stringData": {
                "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
                "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
            },
        }
    )


def quickstart_material() -> Path:
    """Folder with the models and data of the quick start, prepared once in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillchain" / "quickstart"
    prepare = CHECKOUT / "examples" / "quickstart" / "prepare.py"
    subprocess.run([sys.executable, str(prepare), "--into", str(cache)], check=True, stdout=sys.stderr)
    return cache


def _upload_chain_inputs(cluster: WholeCluster, bucket: str) -> None:
    source = quickstart_material()
    client = cluster.s3.client()
    for name in CHAIN_INPUTS:
        for path in sorted((source / name).rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, f"quickstart/{path.relative_to(source).as_posix()}")
