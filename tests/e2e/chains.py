"""The chains of one namespace of the cluster with a node: applied, watched, and read from the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.scene import Running
from cluster.cut import CuttableRelay
from cluster.operator_process import OperatorProcess
from cluster.waiting import wait_until
from cluster.whole import WholeCluster
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.manifest import Manifest

NewChain = Callable[..., dict[str, Any]]

POLL_S = 0.5  # kubectl takes a tenth of a second of CPU, which the trainers need


class Chains:
    """One namespace of the cluster: applies chains and waits for their status."""

    def __init__(self, cluster: WholeCluster, operator: OperatorProcess, namespace: str) -> None:
        self.cluster, self.operator, self.namespace = cluster, operator, namespace
        self.kubectl = cluster.control_plane.kubectl

    def apply(self, chain: dict[str, Any]) -> None:
        self.cluster.control_plane.apply(chain)

    def status(self, name: str) -> ChainStatus:
        chain = self.cluster.control_plane.get(f"distillationchain/{name}", "-n", self.namespace)
        return ChainStatus.parse(chain.get("status", {}))

    def wait(self, name: str, condition: str, *, deadline_s: float = 600) -> ChainStatus:
        """Wait until the condition is true; return the status."""

        def reached() -> ChainStatus | None:
            status = self.status(name)
            assert status.phase != "Failed" or condition != "Succeeded", f"{status.message}\n{self.dump()}"
            return status if any(c.type == condition and c.status == "True" for c in status.conditions) else None

        seen: ChainStatus = self.wait_until(f"{name} to be {condition}", reached, deadline_s=deadline_s)
        return seen

    def wait_until(self, what: str, probe: Callable[[], Any], *, deadline_s: float = 300) -> Any:
        return wait_until(what, probe, deadline_s=deadline_s, dump=self.dump, poll_s=POLL_S)

    def job_names(self) -> list[str]:
        jobs = self.cluster.control_plane.get("jobs", "-n", self.namespace)["items"]
        return sorted(job["metadata"]["name"] for job in jobs)

    def running_pod(self, stage: str) -> str | None:
        """Name of the stage's pod if its trainer has started to train."""
        selector = f"distillchain.io/stage={stage}"
        for pod in self.cluster.control_plane.get("pods", "-n", self.namespace, "-l", selector)["items"]:
            if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp"):
                name = str(pod["metadata"]["name"])
                log = self.kubectl("logs", name, "-n", self.namespace, check=False).stdout
                if '"phase":"Train"' in log:
                    return name
        return None

    def suspend(self, name: str, wanted: bool) -> None:
        patch = json.dumps({"spec": {"suspend": wanted}})
        self.kubectl("patch", "distillationchain", name, "-n", self.namespace, "--type=merge", "-p", patch)

    def manifest(self, chain: dict[str, Any], digest: str) -> Manifest:
        return Manifest.parse(self.stored(chain, digest, "manifest.json"))

    def stored(self, chain: dict[str, Any], digest: str, name: str) -> bytes:
        bucket, _, prefix = chain["spec"]["storage"]["uri"].removeprefix("s3://").partition("/")
        key = f"{prefix}/stages/{digest}/{name}"
        return self.cluster.s3.client().get_object(Bucket=bucket, Key=key)["Body"].read()

    def follow(self, folder: Path, *arguments: str, through: CuttableRelay | None = None) -> Running:
        """`distillchain` in this namespace, as a user runs it; `through` is a network that can be cut."""
        folder.mkdir(exist_ok=True)
        admin, own = self.cluster.control_plane.kubeconfig, folder / "kubeconfig"
        if through is not None:
            return Running(folder, arguments, through.write_kubeconfig(admin, own, namespace=self.namespace))
        return Running(folder, (*arguments, "-n", self.namespace), admin)

    def dump(self) -> str:
        listing = self.kubectl("get", "distillationchains,jobs,pods,events", "-n", self.namespace, check=False).stdout
        logs = self.kubectl(
            *("logs", "-n", self.namespace, "-l", "distillchain.io/chain", "--tail=30", "--prefix"), check=False
        ).stdout
        return f"{listing}\n{logs}\n--- operator\n{self.operator.tail()}"
