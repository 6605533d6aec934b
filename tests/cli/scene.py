"""A chain on a real API server. The tests write its status, as the operator would."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from chain_builders import a_commit, a_document
from cli.parts import COMMAND, WITH_DEFAULT_SIGNALS, clean_environment, distillchain
from cluster.controlplane import ControlPlane
from cluster.waiting import wait_until
from distillchain_api.failures import FailureClass
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.resource.status import ChainStatus, StageProgress, StageStatus
from distillchain_api.retry_request import annotated_retry
from distillchain_cli.local.run import build_status
from distillchain_operator.status.chain_status import status_patch
from distillchain_operator.status.committed import committed_entry

DEADLINE_S = 30
NAME = "sst2-femto"


class Running:
    """A command that runs in the background; killed at the end of the `with` block."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], kubeconfig: Path) -> None:
        self._out, self._err = folder / "running.out", folder / "running.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [*WITH_DEFAULT_SIGNALS, *COMMAND, *arguments],
                cwd=folder,
                env=clean_environment(folder) | {"KUBECONFIG": str(kubeconfig)},
                stdout=out,
                stderr=err,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str) -> None:
        """Waits until stdout or stderr contain the text."""
        wait_until(text, lambda: text in self.stdout + self.stderr, deadline_s=DEADLINE_S, dump=self.dump)

    def end(self) -> int:
        """Waits for the command to end by itself. Returns: its exit code."""
        return self.process.wait(DEADLINE_S)

    def dump(self) -> str:
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Scene:
    """A chain in a namespace of its own, with the stages mini and tiny. The Job of tiny exists."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path, repository: Path) -> None:
        self.cluster, self.namespace, self.folder = control_plane, namespace, folder
        control_plane.kubectl("apply", "-f", str(repository / "crds"))
        wait_until("the CRD", self._has_crd, deadline_s=DEADLINE_S)
        control_plane.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(a_document(NAME)))
        self.chain: DistillationChain = parse_chain(control_plane.get("dchain", NAME, "-n", namespace))
        self.job = self._make_job()

    def _has_crd(self) -> bool:
        return self.cluster.kubectl("get", "dchain", "-A", check=False).returncode == 0

    def _make_job(self) -> str:
        """The Job of tiny. It is suspended, so that no pods are created."""
        chain = self.cluster.get("dchain", NAME, "-n", self.namespace)
        owner = {"apiVersion": chain["apiVersion"], "kind": chain["kind"], "name": NAME, "controller": True}
        pod = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "x"}]}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": f"{NAME}-tiny-0123456789",
                "namespace": self.namespace,
                "ownerReferences": [{**owner, "uid": chain["metadata"]["uid"]}],
            },
            "spec": {"suspend": True, "template": {"spec": pod}},
        }
        self.cluster.apply(job)
        return f"{NAME}-tiny-0123456789"

    def write_status(self, *, tiny: str, step: int | None = None, stalled: str | None = None) -> ChainStatus:
        """Writes a status in which mini is committed.

        Args:
            tiny: phase of the stage tiny.
            step: step of its training.
            stalled: its message; the stage is then stalled by a rejected pod.
        """
        plan = build_plan(self.chain)
        mini = committed_entry(plan.stages[0], a_commit(plan.stages[0]), job="gone", attempt=1)
        entry = StageStatus.model_validate(
            {
                "name": "tiny",
                "phase": tiny,
                "digest": plan.stages[1].digest,
                "job": self.job,
                "attempt": 1,
                "message": "labels differ" if tiny == "Failed" else stalled,
                "failure_class": FailureClass.LABEL_MISMATCH if tiny == "Failed" else None,
            }
        )
        if stalled is not None:
            entry = entry.model_copy(update={"failure_class": FailureClass.POD_REJECTED})
        if step is not None:
            progress = StageProgress(phase="Train", step=step, of=600, loss="0.4123", examples_per_second="812.3")
            entry = entry.model_copy(update={"progress": progress})
        if tiny == "Committed":
            entry = committed_entry(plan.stages[1], a_commit(plan.stages[1], accuracy=0.81), job=self.job, attempt=1)
        status = build_status(plan, [mini, entry])
        if tiny != "Failed":  # the operator has seen what the user asked for
            annotations = self.cluster.get("dchain", NAME, "-n", self.namespace)["metadata"].get("annotations")
            status = status.model_copy(update={"handled_retry": annotated_retry(annotations) or None})
        self._patch("dchain", NAME, status_patch(status))
        return status

    def create_event(
        self,
        reason: str,
        note: str,
        *,
        kind: str = "DistillationChain",
        name: str = NAME,
        second: int = 0,
        annotations: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Creates an Event, `second` seconds from now."""
        uid = self.cluster.get("dchain", NAME, "-n", self.namespace)["metadata"]["uid"]
        moment = (datetime.now(UTC) + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": "event-", "namespace": self.namespace, "annotations": dict(annotations or {})},
            "eventTime": moment,
            "reportingController": "distillchain.io/operator",
            "reportingInstance": "test",
            "action": "Reconcile",
            "reason": reason,
            "note": note,
            "type": "Normal",
            "regarding": {"kind": kind, "name": name, "namespace": self.namespace, "uid": uid},
            **more,
        }
        self.cluster.kubectl("create", "-f", "-", input=json.dumps(event))

    def _patch(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        self.cluster.kubectl(
            "-n", self.namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", patch
        )

    def distillchain(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command with a kubeconfig whose context has this namespace."""
        return distillchain(*arguments, cwd=self.folder, KUBECONFIG=str(self.kubeconfig()))

    def kubeconfig(self) -> Path:
        """A kubeconfig whose context has this namespace."""
        document = json.loads(self.cluster.kubeconfig.read_text())
        document["contexts"][0]["context"]["namespace"] = self.namespace
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps(document))
        return path

    def reader_kubeconfig(self) -> Path:
        """A kubeconfig of a service account that may read chains and Jobs, and nothing else."""
        of = ("-n", self.namespace)
        self.cluster.kubectl(*of, "create", "serviceaccount", "reader")
        rules = ("--verb=get,list,watch", "--resource=distillationchains.distillchain.io,jobs.batch")
        self.cluster.kubectl(*of, "create", "role", "reader", *rules)
        self.cluster.kubectl(
            *of, "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={self.namespace}:reader"
        )
        return self.cluster.kubeconfig_for(self.namespace, "reader")

    def start(self, *arguments: str, kubeconfig: Path | None = None) -> Running:
        """Starts the command in the background."""
        return Running(self.folder, arguments, kubeconfig or self.kubeconfig())

    def has_job(self) -> bool:
        return self.cluster.kubectl("-n", self.namespace, "get", "job", self.job, check=False).returncode == 0
