"""One chain on a real API server, with a real operator: applied, watched, and its pods ended as a kubelet would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from chain_builders import a_commit
from cluster.controlplane import ControlPlane
from cluster.operator_process import OperatorProcess
from cluster.waiting import wait_until
from distillchain_api.evidence_vertices import without_failed
from distillchain_api.graph import PlannedStage, build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.jobs.labels import CHAIN_LABEL, STAGE_LABEL

DEADLINE_S = 30  # most steps take less than a second, but the two cores may be shared with a training run
RETRY_DEADLINE_S = 45  # the Job controller waits 10 s before it replaces a crashed pod
MOMENT = "2026-01-01T12:00:00Z"


class Relay:
    """The chain `relay` in a namespace."""

    def __init__(
        self, control_plane: ControlPlane, namespace: str, operator: OperatorProcess, name: str = "relay"
    ) -> None:
        self.cluster, self.namespace, self.operator, self.name = control_plane, namespace, operator, name

    def kubectl(self, *args: str, **more: Any) -> str:
        return self.cluster.kubectl("-n", self.namespace, *args, **more).stdout

    def apply(self, document: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps(document))

    def chain(self) -> dict[str, Any]:
        return self.cluster.get("dchain", self.name, "-n", self.namespace)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.chain().get("status") or {}
        return status

    def stage(self, name: str) -> dict[str, Any]:
        status = self.status()
        entries = [*status.get("stages", []), *status.get("evidence", [])]
        return next((entry for entry in entries if entry["name"] == name), {})

    def jobs(self, stage: str = "") -> list[dict[str, Any]]:
        return self._of_chain("jobs", stage)

    def pods(self, stage: str = "") -> list[dict[str, Any]]:
        return self._of_chain("pods", stage)

    def _of_chain(self, kind: str, stage: str) -> list[dict[str, Any]]:
        selector = f"{CHAIN_LABEL}={self.name}" + (f",{STAGE_LABEL}={stage}" if stage else "")
        items: list[dict[str, Any]] = self.cluster.get(kind, "-n", self.namespace, "-l", selector)["items"]
        return items

    def planned(self, stage: str) -> PlannedStage:
        planned = build_plan(parse_chain(self.chain(), from_cluster=True)).stage(stage)
        assert planned is not None
        return planned

    def wait(self, what: str, probe: Callable[[], Any], *, deadline_s: float = DEADLINE_S) -> Any:
        return wait_until(what, probe, deadline_s=deadline_s, dump=self.dump)

    def dump(self) -> str:
        objects = self.kubectl("get", "dchain,jobs,pods", "-o", "wide")
        return f"{objects}\n{json.dumps(self.status(), indent=1)}\n{self.operator.tail()}"

    def wait_for_phase(self, phase: str, *, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            chain = self.chain()
            status: dict[str, Any] = chain.get("status") or {}
            is_current = status.get("observedGeneration") == chain["metadata"]["generation"]
            return status if is_current and status["phase"] == phase else None

        found: dict[str, Any] = self.wait(f"phase {phase}", probe, deadline_s=deadline_s)
        return found

    def wait_for_condition(self, kind: str) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            conditions = {c["type"]: c for c in self.status().get("conditions", [])}
            return conditions[kind] if conditions.get(kind, {}).get("status") == "True" else None

        found: dict[str, Any] = self.wait(f"condition {kind}", probe)
        return found

    def wait_for_pod(self, stage: str, *, deadline_s: float = DEADLINE_S) -> str:
        """Name of the stage's unfinished pod."""

        def probe() -> str | None:
            unfinished = [pod for pod in self.pods(stage) if pod["status"]["phase"] in ("Pending", "Running")]
            assert len(unfinished) <= 1, "two pods on one stage"
            return unfinished[0]["metadata"]["name"] if unfinished else None

        name: str = self.wait(f"a pod of stage {stage}", probe, deadline_s=deadline_s)
        return name

    def wait_for_operator(self) -> None:
        """Until the operator has reconciled another chain, so that it has seen everything that was done before."""
        other = Relay(self.cluster, self.namespace, self.operator, "other")
        document = self.chain()
        document["metadata"] = {"name": other.name}
        document["spec"]["suspend"] = True
        other.apply({key: value for key, value in document.items() if key != "status"})
        other.wait_for_phase("Suspended")
        other.kubectl("delete", "dchain", other.name)

    def write_pod_status(self, pod: str, **status: Any) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", pod, "--subresource=status", "--type=merge", "-p", patch)

    def run(self, pod: str, *, started_at: str = MOMENT) -> None:
        """The kubelet has started the trainer."""
        running = container_status({"running": {"startedAt": started_at}}, ready=True)
        self.write_pod_status(pod, phase="Running", containerStatuses=[running])

    def hold(self, pod: str, *, reason: str, message: str) -> None:
        """The kubelet cannot start the trainer."""
        waiting = container_status({"waiting": {"reason": reason, "message": message}})
        self.write_pod_status(pod, containerStatuses=[waiting])

    def end(self, pod: str, *, exit_code: int, message: str = "", reason: str = "", **status: Any) -> None:
        """The trainer has ended."""
        state = {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": MOMENT}
        phase = "Failed" if exit_code else "Succeeded"
        self.write_pod_status(pod, phase=phase, containerStatuses=[container_status({"terminated": state})], **status)

    def commit(self, stage: str, *, without: Sequence[str] = (), **commit: Any) -> None:
        """A trainer runs the stage and commits it.

        Args:
            without: of the verdict: the students that have failed.
        """
        answer = a_commit(without_failed(self.planned(stage), set(without)), **commit)
        self.end(self.wait_for_pod(stage), exit_code=0, message=answer.to_json())
        self.wait(f"stage {stage} committed", lambda: self.stage(stage).get("phase") == "Committed")

    def retry(self, *options: str) -> None:
        """`distillchain retry`."""
        argv = [sys.executable, "-m", "distillchain_cli", "retry", self.name, *options, "-n", self.namespace]
        done = subprocess.run(
            [*argv, "--kubeconfig", str(self.cluster.kubeconfig)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert options or "the operator creates another Job for it" in done.stdout

    def events(self) -> list[str]:
        items = self.cluster.get("events", "-n", self.namespace)["items"]
        regarding = {"kind": "DistillationChain", "name": self.name}
        return [event["reason"] for event in items if regarding.items() <= event["involvedObject"].items()]


def container_status(state: dict[str, Any], *, ready: bool = False) -> dict[str, Any]:
    return {"name": "trainer", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
