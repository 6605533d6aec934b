"""The operator as a process beside a test cluster, with the rights of its ServiceAccount only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.controlplane import ControlPlane

CHECKOUT = Path(__file__).resolve().parents[2]
OPERATOR_NAMESPACE = "distillchain-system"
SERVICE_ACCOUNT = "distillchain-operator"
STOP_DEADLINE_S = 30


def create_operator_namespace(control_plane: ControlPlane) -> None:
    """Create the operator's namespace with Pod Security `restricted`. Idempotent."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    control_plane.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE, "labels": labels}}
    )


def install_manifests(control_plane: ControlPlane) -> None:
    """Apply the CRD and the operator's namespace, ServiceAccount and RBAC, but not its Deployment."""
    control_plane.kubectl("apply", "--server-side", "-f", str(CHECKOUT / "crds"))
    control_plane.wait_until_served("distillationchains")
    control_plane.kubectl("apply", "--server-side", "-f", str(CHECKOUT / "config" / "access.yaml"))
    control_plane.restart_controllers()  # so that the garbage collector knows the new kind


def operator_environment(kubeconfig: Path, **settings: str) -> dict[str, str]:
    """This process's environment plus the operator's settings, minus AWS credentials, which it must not need."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "DISTILLCHAIN_"))}
    return {**inherited, "KUBECONFIG": str(kubeconfig), **settings}


OPERATOR_ARGV = (sys.executable, "-m", "distillchain_operator")


class OperatorProcess:
    """`python -m distillchain_operator` with its output in `log`, killed when the `with` block ends."""

    def __init__(self, kubeconfig: Path, log: Path, settings: Mapping[str, str]) -> None:
        self.log = log
        self._environment = operator_environment(kubeconfig, **settings)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, for the first time or again. It catches up with what happened meanwhile."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(OPERATOR_ARGV, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """Send SIGKILL: it cannot clean up."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Send SIGTERM and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=STOP_DEADLINE_S)

    def has_ended(self) -> bool:
        """Whether it has exited by itself."""
        return self._process is not None and self._process.poll() is not None

    def tail(self, lines: int = 60) -> str:
        """The end of its log, for error messages."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
