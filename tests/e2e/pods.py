"""Pods that run one image, and how they end."""

from __future__ import annotations

import time
from typing import Any

from cluster.build_images import Image
from cluster.waiting import wait_until
from cluster.whole import WholeCluster

END_DEADLINE_S = 10  # the kubelet waits 30; measured 1
FINALIZER = "distillchain.io/tests"

RESTRICTED = {
    "runAsNonRoot": True,  # without runAsUser, the kubelet takes the image's user, which must be a number other than 0
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def a_pod(name: str, namespace: str, image: Image, *args: str, **security: Any) -> dict[str, Any]:
    """A pod that runs the image's entrypoint under Pod Security `restricted`."""
    container = {"name": "it", "image": image.name, "args": list(args), "securityContext": {**RESTRICTED, **security}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }


class Pods:
    """The pods of one namespace: how they end, and their logs."""

    def __init__(self, cluster: WholeCluster, namespace: str) -> None:
        self.control_plane, self.namespace = cluster.control_plane, namespace

    def terminated(self, name: str, *, deadline_s: float = 60) -> dict[str, Any]:
        """Wait until its container has exited; return the terminated state."""

        def terminated() -> dict[str, Any] | None:
            pod = self.control_plane.get(f"pod/{name}", "-n", self.namespace)
            (container,) = pod["status"].get("containerStatuses") or [{"state": {}}]
            state: dict[str, Any] | None = container["state"].get("terminated")
            return state

        def dump() -> str:
            words = (f"pod/{name}", "-n", self.namespace)
            described = self.control_plane.kubectl("describe", *words, check=False).stdout
            return f"{described}\n{self.log(name)}"

        return wait_until(f"pod {name} to exit", terminated, deadline_s=deadline_s, dump=dump)

    def log(self, name: str) -> str:
        return self.control_plane.kubectl("logs", name, "-n", self.namespace, check=False).stdout

    def delete_and_watch(self, name: str) -> tuple[dict[str, Any], float]:
        """Delete a pod; return its terminated state and the seconds that this took. A finalizer keeps the pod until then."""
        self._set_finalizers(name, f'["{FINALIZER}"]')
        try:
            started = time.monotonic()
            self.control_plane.kubectl("delete", "pod", name, "-n", self.namespace, "--wait=false")
            return self.terminated(name), time.monotonic() - started
        finally:
            self._set_finalizers(name, "null")

    def _set_finalizers(self, name: str, finalizers: str) -> None:
        patch = f'{{"metadata":{{"finalizers":{finalizers}}}}}'
        self.control_plane.kubectl("patch", "pod", name, "-n", self.namespace, "--type=merge", "-p", patch)
