"""What a stage on several nodes has beside its Job: a headless Service and a NetworkPolicy, owned by the Job. Pure.

The pods find each other by DNS. The Job controller gives the pod of node N the host name `<job>-N`; with a headless
Service that is the subdomain of all of them, `<job>-0.<service>.<namespace>.svc` is the address of node 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillchain_api.wire.work_order import NODE_ENV, RENDEZVOUS_ENV, RENDEZVOUS_PORT
from distillchain_operator.jobs.labels import CHAIN_LABEL, JOB_NAME_LABEL, MANAGED_BY, STAGE_LABEL, TRAINER_CONTAINER
from distillchain_operator.jobs.observed import ObservedJob

TORCH_PORT = RENDEZVOUS_PORT + 1

Manifest = dict[str, Any]


def service_name(job: str) -> str:
    """Name of the Service of a Job. Unlike a Job's, it must start with a letter."""
    return job if job[0].isalpha() else f"s-{job}"


def join_group(spec: Manifest, *, job: str, namespace: str) -> None:
    """Writes into the spec of a Job how its pods find node 0."""
    pod = spec["template"]["spec"]
    pod["subdomain"] = service_name(job)
    trainer = next(container for container in pod["containers"] if container["name"] == TRAINER_CONTAINER)
    address = f"{job}-0.{service_name(job)}.{namespace}.svc:{RENDEZVOUS_PORT}"
    # The Job controller does not replace a NODE_ENV that the user states.
    users = [entry for entry in trainer["env"] if entry["name"] not in (RENDEZVOUS_ENV, NODE_ENV)]
    trainer["env"] = [*users, {"name": RENDEZVOUS_ENV, "value": address}]


def build_service(job: ObservedJob, *, namespace: str, chain: str) -> Manifest:
    """The Service that gives the pods of a Job their names in DNS."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service_name(job.name), job, namespace=namespace, chain=chain),
        "spec": {
            "clusterIP": "None",
            # A pod must find node 0 before node 0 is ready: it waits for the others.
            "publishNotReadyAddresses": True,
            "selector": _pods(job),
            "ports": [
                {"name": "group", "port": RENDEZVOUS_PORT, "protocol": "TCP"},
                {"name": "torch", "port": TORCH_PORT, "protocol": "TCP"},
            ],
        },
    }


def build_network_policy(job: ObservedJob, *, namespace: str, chain: str) -> Manifest:
    """The NetworkPolicy that lets only the pods of a Job reach each other, on all ports."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(job.name, job, namespace=namespace, chain=chain),
        "spec": {
            "podSelector": {"matchLabels": _pods(job)},
            "policyTypes": ["Ingress"],
            # No ports: NCCL and gloo listen on any free one.
            "ingress": [{"from": [{"podSelector": {"matchLabels": _pods(job)}}]}],
        },
    }


def without_owner(manifest: Mapping[str, Any]) -> Manifest:
    """A manifest for a dry run before its Job exists, which therefore has no UID."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}
    return {**manifest, "metadata": metadata}


def _metadata(name: str, job: ObservedJob, *, namespace: str, chain: str) -> Manifest:
    return {
        "name": name,
        "namespace": namespace,
        "labels": {CHAIN_LABEL: chain, STAGE_LABEL: job.stage, **MANAGED_BY},
        # Not blockOwnerDeletion, which would require rights on the finalizers of Jobs.
        "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid, "controller": True}
        ],
    }


def _pods(job: ObservedJob) -> dict[str, str]:
    return {JOB_NAME_LABEL: job.name}
