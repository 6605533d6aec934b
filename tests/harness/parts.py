"""Jobs as the operator makes them, and another process that uses the harness."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ControlPlane
from cluster.images import PAUSE_IMAGE

TESTS = Path(__file__).parent.parent

# As the operator makes its pods.
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": 1000,
}


def a_job(
    name: str,
    namespace: str,
    *command: str,
    image: str = PAUSE_IMAGE,
    pod: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A Job of one pod, written as the operator writes it: into a template of the user."""
    spec: dict[str, Any] = json.loads(json.dumps((pod or {"spec": {"containers": [{"name": "trainer"}]}})["spec"]))
    (container,) = spec["containers"]
    container |= {
        "image": image,
        "command": list(command),
        "securityContext": RESTRICTED,
        "resources": {"limits": limits or {}},
        "volumeMounts": [*container.get("volumeMounts", []), {"name": "scratch", "mountPath": "/tmp"}],
    }
    spec |= {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 3,
        "volumes": [*spec.get("volumes", []), {"name": "scratch", "emptyDir": {}}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def the_pod(cluster: ControlPlane, namespace: str, job: str) -> dict[str, Any]:
    (pod,) = cluster.get("pods", "-n", namespace, "-l", f"job-name={job}")["items"]
    return dict(pod)


def wait_for(cluster: ControlPlane, namespace: str, what: str, condition: str) -> None:
    waited = cluster.kubectl("wait", what, "-n", namespace, f"--for={condition}", "--timeout=60s", check=False)
    if waited.returncode != 0:
        state = cluster.kubectl("describe", "pods", "-n", namespace, check=False).stdout
        logs = cluster.kubectl("logs", "-n", namespace, "-l", "job-name", "--tail=50", check=False).stdout
        pytest.fail(f"{waited.stderr}\n{state}\n{logs}")


def run_python(code: str) -> subprocess.Popen[str]:
    """Another process that uses the harness; it says on its first lines what the test must know."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True)
