"""Jobs of the first stage of a chain, for tests."""

from __future__ import annotations

from typing import Any

from chain_builders import a_plan
from distillchain_operator.jobs.stage_job import JobDefaults, build_job

OPERATORS_POD: dict[str, Any] = {
    "metadata": {"labels": {"queue": "gpu", "team": "platform"}},
    "spec": {
        "serviceAccountName": "trainer",
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
        "securityContext": {"runAsUser": None},
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}, {"name": "scratch", "hostPath": {"path": "/scratch"}}],
        "containers": [
            {
                "name": "trainer",
                "env": [
                    {"name": "AWS_ENDPOINT_URL_S3", "value": "https://s3.example"},
                    {"name": "AWS_REGION", "value": "eu-west-1"},
                ],
                "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "8Gi"}},
                "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
            },
            {"name": "proxy", "image": "registry.example/proxy:1"},
        ],
    },
}


def job_of(**chain: Any) -> dict[str, Any]:
    plan = a_plan(**chain)
    return build_job(plan.chain, plan.stages[0], defaults=JobDefaults())


def trainer_of(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == "trainer")
    return found
