"""The operator in a pod of a test cluster: installed by Helm, from the image of a release, as a platform team does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chart.helm import CHART, helm
from cluster.build_images import Image
from cluster.controlplane import ControlPlane
from cluster.errors import CommandFailed, DidNotHappen
from cluster.operator_process import OPERATOR_NAMESPACE

READY_TIMEOUT = "90s"  # measured 4
TEST_TIMEOUT = "280s"  # below chart.helm's DEADLINE_S; the chart's own is 240


@dataclass(frozen=True)
class Release:
    """A release of the chart in the operator's namespace. It need not be installed yet."""

    control_plane: ControlPlane
    name: str

    @property
    def deployment(self) -> str:
        """Name of the operator's Deployment, as the chart builds it."""
        full = self.name if "distillchain" in self.name else f"{self.name}-distillchain"
        return f"{full}-operator"

    @property
    def pods(self) -> tuple[str, ...]:
        """Arguments for kubectl that select the operator's pods."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=operator"
        return "-n", OPERATOR_NAMESPACE, "-l", labels

    def install(self, image: Image, *, trainer_image: str, values: Mapping[str, Any]) -> None:
        """Install or upgrade the release; return when the operator's pod is ready.

        Args:
            values: values of the chart in addition to the two images.
        Raises: DidNotHappen with the state and log of the pod.
        """
        chains = {**values.get("chains", {}), "image": _image_values(trainer_image)}
        probes = {"startupProbe": {"periodSeconds": 1}, "readinessProbe": {"periodSeconds": 1}}
        document = {**probes, **values, "image": _image_values(image.name), "chains": chains}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "values.json"
            file.write_text(json.dumps(document))
            try:
                self._helm("upgrade", "--install", self.name, str(CHART), "--values", str(file), "--wait")
            except CommandFailed as failure:
                raise DidNotHappen(f"{failure}\n{self.describe()}") from failure

    def test(self) -> str:
        """Run `helm test`; return its output. Raises: DidNotHappen."""
        try:
            return self._helm("test", self.name, "--logs", timeout=TEST_TIMEOUT)
        except CommandFailed as failure:
            raise DidNotHappen(f"{failure}\n{self.describe()}") from failure

    def uninstall(self) -> None:
        """Uninstall the release and wait until its pod is gone. The CRD and all chains stay."""
        self._helm("uninstall", self.name, "--ignore-not-found", "--wait")

    def is_available(self) -> bool:
        """Whether its pod is ready."""
        got = self.control_plane.kubectl(
            *("get", "deployment", self.deployment, "-n", OPERATOR_NAMESPACE),
            *("-o", "jsonpath={.status.availableReplicas}"),
            check=False,
        )
        return got.returncode == 0 and got.stdout.strip() == "1"

    def describe(self) -> str:
        """State of its pods and the end of their logs, for error messages."""
        parts = [
            self.control_plane.kubectl("describe", "pods", *self.pods, check=False).stdout,
            self.control_plane.kubectl("logs", *self.pods, "--tail=60", check=False).stdout,
        ]
        return "\n".join(parts)

    def _helm(self, *args: str, timeout: str = READY_TIMEOUT) -> str:
        where = ("--namespace", OPERATOR_NAMESPACE, "--timeout", timeout)
        with tempfile.TemporaryDirectory() as home:
            return helm(*args, *where, kubeconfig=self.control_plane.kubeconfig, home=Path(home))


def _image_values(name: str) -> dict[str, str]:
    registry, _, rest = name.partition("/")
    repository, _, tag = rest.rpartition(":")
    return {"registry": registry, "repository": repository, "tag": tag}
