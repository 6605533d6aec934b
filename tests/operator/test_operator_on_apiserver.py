"""The operator as a process against a real API server, with its own ServiceAccount and the manifests of config/.

Real Job and garbage-collection controllers make, replace and delete the pods; the tests write the pods' ends, as a
kubelet would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chain_builders import a_commit, a_document, a_failure
from chart.helm import helm
from cluster.controlplane import ControlPlane
from cluster.errors import CommandFailed
from cluster.ports import free_ports
from cluster.waiting import wait_until
from distillchain_api.failures import FailureClass
from distillchain_api.graph import PlannedStage, build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_operator.jobs import NO_DEFAULTS, build_job, build_probe_pod
from distillchain_operator.labels import CHAIN_LABEL, STAGE_LABEL

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

DEADLINE_S = 30  # most take below one second; two cores may be shared with a training run
RETRY_DEADLINE_S = 45  # the Job controller waits 10 s before it replaces a crashed pod
MOMENT = "2026-01-01T12:00:00Z"


class Operator:
    """`python -m distillchain_operator`, which a test may kill."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self.log = log
        self._kubeconfig = kubeconfig
        (self.metrics_port,) = free_ports(1)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("DISTILLCHAIN_")}
        settings = {
            "KUBECONFIG": str(self._kubeconfig),
            "DISTILLCHAIN_LOG_FORMAT": "plain",
            "DISTILLCHAIN_METRICS_PORT": str(self.metrics_port),
        }
        with self.log.open("ab") as log:
            argv = [sys.executable, "-W", "error::RuntimeWarning", "-m", "distillchain_operator"]
            return subprocess.Popen(argv, env=ours | settings, stderr=log, stdout=log)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start_again(self) -> None:
        self.process = self._start()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    control_plane.kubectl("apply", "-f", str(repository / "crds"), "-f", str(repository / "config" / "access.yaml"))
    control_plane.restart_controllers()
    kubeconfig = control_plane.kubeconfig_for("distillchain-system", "distillchain-operator")
    running = Operator(kubeconfig, tmp_path_factory.mktemp("operator") / "operator.log")
    yield running
    running.stop()
    log = running.log.read_text()
    assert "Traceback" not in log, log


class Relay:
    """One chain in a namespace: applied, watched, and its pods brought to their ends."""

    def __init__(self, control_plane: ControlPlane, namespace: str, operator: Operator) -> None:
        self.cluster, self.namespace, self.operator = control_plane, namespace, operator
        self.name = "relay"

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
        return next((entry for entry in self.status().get("stages", []) if entry["name"] == name), {})

    def jobs(self, stage: str = "") -> list[dict[str, Any]]:
        selector = f"{CHAIN_LABEL}={self.name}" + (f",{STAGE_LABEL}={stage}" if stage else "")
        items: list[dict[str, Any]] = self.cluster.get("jobs", "-n", self.namespace, "-l", selector)["items"]
        return items

    def pods(self, stage: str = "") -> list[dict[str, Any]]:
        selector = f"{CHAIN_LABEL}={self.name}" + (f",{STAGE_LABEL}={stage}" if stage else "")
        items: list[dict[str, Any]] = self.cluster.get("pods", "-n", self.namespace, "-l", selector)["items"]
        return items

    def planned(self, stage: str) -> PlannedStage:
        planned = build_plan(parse_chain(self.chain())).stage(stage)
        assert planned is not None
        return planned

    def wait(self, what: str, probe: Any, *, deadline_s: float = DEADLINE_S) -> Any:
        return wait_until(what, probe, deadline_s=deadline_s, dump=self.dump)

    def dump(self) -> str:
        seen = self.kubectl("get", "dchain,jobs,pods", "-o", "wide")
        return f"{seen}\n{json.dumps(self.status(), indent=1)}\n{self.operator.log.read_text()[-6000:]}"

    def wait_for_phase(self, phase: str, *, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
        def probe() -> dict[str, Any] | None:
            chain = self.chain()
            status: dict[str, Any] = chain.get("status") or {}
            current = status.get("observedGeneration") == chain["metadata"]["generation"]
            return status if current and status["phase"] == phase else None

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
            open_pods = [pod for pod in self.pods(stage) if pod["status"]["phase"] in ("Pending", "Running")]
            assert len(open_pods) <= 1, "two pods on one stage"
            return open_pods[0]["metadata"]["name"] if open_pods else None

        name: str = self.wait(f"a pod of stage {stage}", probe, deadline_s=deadline_s)
        return name

    def write_pod_status(self, pod: str, **status: Any) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", pod, "--subresource=status", "--type=merge", "-p", patch)

    def run(self, pod: str) -> None:
        self.write_pod_status(
            pod, phase="Running", containerStatuses=[_container({"running": {"startedAt": MOMENT}}, ready=True)]
        )

    def end(self, pod: str, *, exit_code: int, message: str = "", reason: str = "", **status: Any) -> None:
        state = {"exitCode": exit_code, "message": message, "reason": reason, "finishedAt": MOMENT}
        phase = "Failed" if exit_code else "Succeeded"
        self.write_pod_status(pod, phase=phase, containerStatuses=[_container({"terminated": state})], **status)

    def commit(self, stage: str, **commit: Any) -> None:
        """A trainer runs the stage and commits it."""
        answer = a_commit(self.planned(stage), **commit)
        self.end(self.wait_for_pod(stage), exit_code=0, message=answer.to_json())
        self.wait(f"stage {stage} committed", lambda: self.stage(stage).get("phase") == "Committed")

    def events(self) -> list[str]:
        items = self.cluster.get("events", "-n", self.namespace)["items"]
        ours = {"kind": "DistillationChain", "name": self.name}
        return [event["reason"] for event in items if ours.items() <= event["involvedObject"].items()]


def _container(state: dict[str, Any], *, ready: bool = False) -> dict[str, Any]:
    return {"name": "trainer", "image": "x", "imageID": "", "ready": ready, "restartCount": 0, "state": state}


@pytest.fixture
def relay(control_plane: ControlPlane, namespace: str, operator: Operator) -> Relay:
    return Relay(control_plane, namespace, operator)


def test_two_stages_run_in_order_to_succeeded_and_applying_again_runs_nothing(relay: Relay):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    relay.wait("mini running", lambda: relay.stage("mini").get("phase") == "Running")
    assert relay.jobs("tiny") == []
    assert relay.stage("tiny")["message"] == "waiting for mini to commit"

    relay.commit("mini", accuracy=0.88, parameters=11_000_000)
    relay.commit("tiny", accuracy=0.81, parameters=4_000_000)
    status = relay.wait_for_phase("Succeeded")

    assert (status["stage"], status["metric"]) == ("2/2", "0.8100")
    assert status["result"]["retention"] == "0.8804"
    assert status["result"]["compression"] == "5.7"
    relay.kubectl("wait", "dchain/relay", "--for=condition=Succeeded", "--timeout=1s")
    relay.kubectl("wait", "dchain/relay", "--for=condition=Ready", "--timeout=1s")
    relay.wait("the last event", lambda: "ChainSucceeded" in relay.events())
    want_events = ["StageStarted", "StageCommitted", "StageStarted", "StageCommitted", "ChainSucceeded"]
    assert sorted(relay.events()) == sorted(want_events)

    before = relay.chain()["metadata"]["resourceVersion"]
    relay.kubectl("delete", "jobs", "--all", "--wait")
    relay.apply(a_document())
    relay.operator.kill()  # a new life lists everything anew, which is the strongest reason to run something
    relay.operator.start_again()
    _wait_for_another_chain_to_be_looked_at(relay)
    assert relay.jobs() == []
    assert relay.chain()["metadata"]["resourceVersion"] == before  # not even the status was written
    assert sorted(relay.events()) == sorted(want_events)


def _wait_for_another_chain_to_be_looked_at(relay: Relay) -> None:
    """Until the operator has surely seen all that was done before."""
    probe = Relay(relay.cluster, relay.namespace, relay.operator)
    probe.name = "probe"
    probe.apply(a_document("probe", suspend=True))
    probe.wait_for_phase("Suspended")
    probe.kubectl("delete", "dchain", "probe")


def test_a_fatal_exit_fails_the_chain_at_once_with_the_trainers_own_sentence(relay: Relay):
    relay.apply(a_document())
    pod = relay.wait_for_pod("mini")
    sentence = "teacher hf://org/teacher: accuracy 0.612 is under spec.teacher.gate.minMetric 0.9; fine-tune it"
    answer = a_failure(relay.planned("mini"), FailureClass.GATE_NOT_MET, sentence)
    relay.end(pod, exit_code=68, message=answer.to_json(), reason="Error")

    status = relay.wait_for_phase("Failed")
    assert status["message"] == f"mini: {sentence}"
    assert relay.stage("mini")["failureClass"] == "GateNotMet"
    assert relay.wait_for_condition("Stalled")["reason"] == "GateNotMet"
    assert len(relay.pods("mini")) == 1  # no retry
    assert sentence in relay.kubectl("get", "dchain")
    relay.wait("the event", lambda: "StageFailed" in relay.events())
    assert sentence in relay.kubectl("describe", "dchain", "relay")

    relay.kubectl("delete", "job", relay.jobs("mini")[0]["metadata"]["name"])  # `distillchain retry`
    relay.commit("mini")
    relay.wait_for_pod("tiny")


def test_an_evicted_and_an_interrupted_pod_are_replaced_and_not_counted(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    first = relay.wait_for_pod("mini")
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    relay.end(first, exit_code=137, reason="Error", conditions=[disrupted])
    second = relay.wait_for_pod("mini", deadline_s=RETRY_DEADLINE_S)
    assert second != first
    relay.end(second, exit_code=75, reason="Error")
    third = relay.wait_for_pod("mini", deadline_s=RETRY_DEADLINE_S)
    assert third not in (first, second)
    relay.kubectl("delete", "pod", first, second)  # as those of an eviction are
    relay.commit("mini")
    status = relay.wait_for_phase("Succeeded")
    assert status["stages"][0]["attempt"] == 3
    assert len(relay.jobs()) == 1


def test_a_pod_out_of_memory_is_tried_again_and_then_named_as_such(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 1}))
    relay.end(relay.wait_for_pod("mini"), exit_code=137, reason="OOMKilled")
    relay.wait("a note of the crash", lambda: "OOMKilled" in relay.stage("mini").get("message", ""))
    assert relay.stage("mini")["phase"] == "Running"
    relay.end(relay.wait_for_pod("mini", deadline_s=RETRY_DEADLINE_S), exit_code=137, reason="OOMKilled")
    status = relay.wait_for_phase("Failed")
    assert status["stages"][0]["failureClass"] == "OutOfMemory"
    assert "was OOMKilled (exit code 137)" in status["message"]
    assert "(the last of 2 failed attempts)" in status["message"]
    assert relay.jobs("tiny") == []


def test_a_suspended_chain_stops_its_pod_and_goes_on_when_resumed(relay: Relay):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    relay.apply(a_document(suspend=True))
    relay.wait_for_condition("Suspended")
    assert relay.status()["phase"] == "Suspended"
    assert relay.pods("mini") == []
    assert relay.jobs("mini")[0]["spec"]["suspend"] is True

    relay.apply(a_document())
    relay.commit("mini")
    relay.apply(a_document(suspend=True))
    relay.wait_for_phase("Suspended")
    relay.apply(a_document())
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs()) == 2
    assert {"Suspended", "Resumed"} <= set(relay.events())


def test_a_job_that_another_controller_suspends_is_not_resumed(relay: Relay):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    (job,) = relay.jobs("mini")
    name = job["metadata"]["name"]
    relay.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"suspend": true}}')
    want = f"running mini: Job {name} is suspended by another (such as Kueue), who resumes it"
    relay.wait("that to be said", lambda: relay.status().get("message", "").startswith(want))
    _wait_for_another_chain_to_be_looked_at(relay)
    assert relay.jobs("mini")[0]["spec"]["suspend"] is True

    relay.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"suspend": false}}')
    relay.commit("mini")


def test_a_chain_suspended_before_its_pod_started_does_not_fail_for_that(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    first = relay.wait_for_pod("mini")
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"], suspend=True))
    relay.wait_for_condition("Suspended")
    assert relay.pods("mini") == []
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    assert relay.wait_for_pod("mini") != first
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")


def test_a_quota_that_is_used_up_is_waited_for(relay: Relay):
    relay.kubectl("create", "quota", "full", "--hard=pods=0")
    relay.wait(
        "the quota", lambda: "pods" in relay.cluster.get("quota", "full", "-n", relay.namespace)["status"]["used"]
    )
    relay.apply(a_document(stages=["mini"]))
    status = relay.wait_for_phase("Pending")
    assert "exceeded quota: full" in status["message"]
    assert relay.jobs() == []
    before = relay.chain()["metadata"]["resourceVersion"]
    for _ in range(2):  # seconds, in which a write that is news and is answered by a write would go round often
        _wait_for_another_chain_to_be_looked_at(relay)
    assert relay.chain()["metadata"]["resourceVersion"] == before
    relay.kubectl("delete", "quota", "full")
    relay.apply(a_document(stages=["mini"], template={"image": "x"}))  # rather than wait for half a minute
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")


def test_a_pod_that_bears_the_name_of_the_dry_run_hinders_nothing(relay: Relay):
    relay.apply(a_document(stages=["mini"], suspend=True))
    probe = build_probe_pod(build_job(parse_chain(relay.chain()), relay.planned("mini"), defaults=NO_DEFAULTS))
    relay.kubectl("run", probe["metadata"]["name"], "--image=x")
    relay.apply(a_document(stages=["mini"]))
    relay.commit("mini")


def test_a_policy_against_pods_that_nothing_controls_refuses_no_stage(relay: Relay):
    metadata = {"name": f"no-naked-pods-{relay.namespace}"[:63].rstrip("-")}
    here = {"matchLabels": {"kubernetes.io/metadata.name": relay.namespace}}
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": metadata}
    policy: dict[str, Any] = {
        "matchConstraints": {"namespaceSelector": here, "resourceRules": [pods]},
        "validations": [
            {"expression": "object.metadata.?ownerReferences.orValue([]).exists(o, o.?controller == optional.of(true))"}
        ],
    }
    binding = {"policyName": metadata["name"], "validationActions": ["Deny"]}
    relay.cluster.apply(
        {"kind": "ValidatingAdmissionPolicy", **api, "spec": policy},
        {"kind": "ValidatingAdmissionPolicyBinding", **api, "spec": binding},
    )
    naked = ["-n", relay.namespace, "run", "naked", "--image=x", "--dry-run=server"]
    try:
        relay.wait("the policy", lambda: relay.cluster.kubectl(*naked, check=False).returncode != 0)
        relay.apply(a_document(stages=["mini"]))
        relay.commit("mini")
    finally:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            relay.kubectl("delete", kind, metadata["name"])


def test_retry_after_a_damaged_checkpoint_asks_the_stage_that_made_it_again(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    sentence = "s3://models/distill/stages/x/attempts/a1/model.safetensors was altered"
    answer = a_failure(relay.planned("tiny"), FailureClass.CHECKPOINT_CORRUPT, sentence)
    relay.end(relay.wait_for_pod("tiny"), exit_code=66, message=answer.to_json(), reason="Error")
    relay.wait_for_phase("Failed")
    first = relay.jobs("mini")[0]["metadata"]["uid"]

    _retry(relay)
    relay.wait(
        "another Job of mini", lambda: [job["metadata"]["uid"] for job in relay.jobs("mini")] not in ([], [first])
    )
    assert relay.jobs("tiny") == []
    relay.commit("mini")
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")


def _retry(relay: Relay) -> None:
    argv = [sys.executable, "-m", "distillchain_cli", "retry", relay.name, "-n", relay.namespace]
    done = subprocess.run(
        [*argv, "--kubeconfig", str(relay.cluster.kubeconfig)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the operator creates it again" in done.stdout


def test_an_edit_of_the_first_stage_of_a_succeeded_chain_runs_all_of_it_again(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    relay.commit("tiny")
    before = relay.wait_for_phase("Succeeded")
    edited = a_document()
    edited["spec"]["stages"][0]["training"] = {"epochs": 7}
    relay.apply(edited)
    relay.commit("mini")
    relay.commit("tiny")
    after = relay.wait_for_phase("Succeeded")
    made = [{entry["job"] for entry in status["stages"]} for status in (before, after)]
    assert len(made[0] | made[1]) == 4


def test_an_edit_of_the_second_stage_replaces_its_running_job_and_keeps_the_first(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    relay.run(relay.wait_for_pod("tiny"))
    first_tiny = relay.jobs("tiny")[0]["metadata"]["name"]
    edited = a_document()
    edited["spec"]["stages"][1]["training"] = {"epochs": 7}
    relay.apply(edited)
    relay.wait("the old Job gone", lambda: first_tiny not in [job["metadata"]["name"] for job in relay.jobs("tiny")])
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs("mini")) == 1
    assert len(relay.jobs("tiny")) == 1


def test_an_edit_of_where_a_running_stage_runs_waits_for_its_end(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    relay.run(pod)
    relay.wait("mini running", lambda: relay.stage("mini").get("message") is None)
    relay.apply(a_document(stages=["mini"], template={"image": "registry.example/another:2"}))
    _wait_for_another_chain_to_be_looked_at(relay)
    assert relay.wait_for_pod("mini") == pod
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs()) == 1


def test_an_edit_of_the_image_replaces_a_job_whose_pod_cannot_start(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry.example/typo"'}
    relay.write_pod_status(pod, containerStatuses=[_container({"waiting": waiting})])
    assert "ImagePullBackOff" in relay.wait_for_condition("Stalled")["message"]
    relay.apply(a_document(stages=["mini"], template={"image": "registry.example/mended:2"}))

    def mended() -> bool:
        images = [p["spec"]["containers"][0]["image"] for p in relay.pods("mini")]
        return images == ["registry.example/mended:2"]

    relay.wait("a pod with the other image", mended)
    relay.commit("mini")
    assert len(relay.jobs()) == 1


def test_deleting_a_chain_deletes_its_jobs_and_pods(relay: Relay):
    relay.apply(a_document())
    relay.wait_for_pod("mini")
    relay.kubectl("delete", "dchain", "relay", "--wait=false")
    relay.wait("Jobs and pods gone", lambda: not relay.jobs() and not relay.pods(), deadline_s=60)
    relay.wait("the chain gone", lambda: not relay.cluster.get("dchain", "-n", relay.namespace)["items"])


def test_a_chain_made_anew_under_the_old_name_waits_for_the_old_jobs_to_be_gone(relay: Relay):
    relay.apply(a_document())
    relay.wait_for_pod("mini")
    old = relay.chain()["metadata"]["uid"]
    relay.kubectl("delete", "dchain", "relay", "--cascade=orphan")
    orphan = relay.jobs("mini")[0]["metadata"]["name"]
    relay.apply(a_document())
    relay.wait("the name taken", lambda: f"waiting for Job {orphan} to be gone" in relay.status().get("message", ""))
    assert relay.chain()["metadata"]["uid"] != old
    relay.kubectl("delete", "job", orphan)
    relay.commit("mini")


def test_an_operator_killed_in_the_middle_makes_neither_a_second_job_nor_misses_one(relay: Relay):
    relay.apply(a_document())
    uids = {}
    for stage in ("mini", "tiny"):
        pod = relay.wait_for_pod(stage)
        uids[stage] = relay.jobs(stage)[0]["metadata"]["uid"]
        relay.operator.kill()
        relay.end(pod, exit_code=0, message=a_commit(relay.planned(stage)).to_json())  # while no operator lives
        relay.operator.start_again()
        relay.wait(f"{stage} committed", lambda name=stage: relay.stage(name).get("phase") == "Committed")
    relay.wait_for_phase("Succeeded")
    assert {stage: [job["metadata"]["uid"] for job in relay.jobs(stage)] for stage in uids} == {
        stage: [uid] for stage, uid in uids.items()
    }


def test_an_operator_killed_in_the_very_moment_it_makes_a_job_ends_with_one_job(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    # Most often before the status is written; every other point between two lines is in test_reconcile.py.
    relay.wait("a Job", lambda: relay.jobs("mini"))
    relay.operator.kill()
    uid = relay.jobs("mini")[0]["metadata"]["uid"]
    relay.operator.start_again()
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")
    assert [job["metadata"]["uid"] for job in relay.jobs()] == [uid]


@pytest.mark.parametrize(
    "template, want",
    [
        pytest.param(
            {"image": "x", "resources": {"limits": {"cpu": "much"}}}, "quantities must match", id="a bad quantity"
        ),
        pytest.param(
            {"image": "x", "pod": {"spec": {"nodeSelektor": {"a": "b"}}}},
            'unknown field "spec.nodeSelektor"',
            id="a misspelt field",
        ),
        pytest.param(
            {"image": "x", "pod": {"spec": {"serviceAccountName": "nobody"}}},
            'serviceaccount "nobody" not found',
            id="a service account that is not there: only pod admission sees it",
        ),
        pytest.param({}, "missing, and this operator has no default", id="no image at all"),
    ],
)
def test_a_pod_template_that_would_be_refused_is_said_in_stalled(relay: Relay, template: dict[str, Any], want: str):
    relay.apply(a_document(template=template))
    relay.wait_for_phase("Failed")
    stalled = relay.wait_for_condition("Stalled")
    assert stalled["reason"] == "PodRejected"
    assert want in stalled["message"]
    assert relay.jobs() == []

    relay.apply(a_document())  # mended
    relay.wait_for_pod("mini")


def test_a_pod_that_waits_for_a_missing_secret_stalls_and_recovers(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "s3-credentials" not found'}
    relay.write_pod_status(pod, containerStatuses=[_container({"waiting": waiting})])
    stalled = relay.wait_for_condition("Stalled")
    assert 'secret "s3-credentials" not found' in stalled["message"]
    relay.run(pod)
    relay.wait_for_condition("Reconciling")
    relay.commit("mini")


def test_the_operator_writes_nothing_but_status(relay: Relay):
    document = a_document()
    relay.kubectl("apply", "--server-side", "--field-manager=gitops", "-f", "-", input=json.dumps(document))
    relay.commit("mini")
    chain = relay.cluster.get("dchain", "relay", "-n", relay.namespace, "--show-managed-fields")
    assert "finalizers" not in chain["metadata"]
    assert "annotations" not in chain["metadata"]
    assert chain["metadata"]["generation"] == 1
    others = [f for f in chain["metadata"]["managedFields"] if f["manager"] != "gitops"]
    assert [(f.get("subresource"), list(f["fieldsV1"])) for f in others] == [("status", ["f:status"])]
    diff = relay.cluster.kubectl(
        "-n", relay.namespace, "diff", "--server-side", "--field-manager=gitops", "-f", "-",
        input=json.dumps(document), check=False,
    )  # fmt: skip
    assert (diff.returncode, diff.stdout) == (0, "")


class NamespacedOperator(Operator):
    """An operator of some namespaces."""

    def __init__(self, kubeconfig: Path, log: Path, *, namespaces: list[str]) -> None:
        self._namespaces = namespaces
        super().__init__(kubeconfig, log)

    def _start(self) -> subprocess.Popen[bytes]:
        settings = {"KUBECONFIG": str(self._kubeconfig), "DISTILLCHAIN_NAMESPACES": ",".join(self._namespaces)}
        with self.log.open("ab") as log:
            argv = [sys.executable, "-m", "distillchain_operator"]
            return subprocess.Popen(argv, env=dict(os.environ) | settings, stderr=log, stdout=log)


def test_an_outage_of_the_api_server_is_survived(relay: Relay, control_plane: ControlPlane):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    control_plane.restart_apiserver()
    relay.commit("mini")
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs()) == 2


@pytest.fixture
def own_role(control_plane: ControlPlane, namespace: str, operator: Operator, repository: Path) -> Iterator[Path]:
    """The kubeconfig of an operator with a Role in `namespace`, while that of the whole cluster is away."""
    operator.kill()
    control_plane.kubectl("apply", "-n", namespace, "-k", str(repository / "config" / "namespaced"))
    yield control_plane.kubeconfig_for(namespace, "distillchain-operator")
    operator.start_again()


def test_the_namespaced_role_is_enough_for_its_namespace(
    control_plane: ControlPlane, namespace: str, own_role: Path, tmp_path: Path
):
    own = NamespacedOperator(own_role, tmp_path / "operator.log", namespaces=[namespace])
    try:
        relay = Relay(control_plane, namespace, own)
        relay.apply(a_document(stages=["mini"]))
        relay.commit("mini")
        relay.wait_for_phase("Succeeded")
        relay.wait("the last event", lambda: "ChainSucceeded" in relay.events())
    finally:
        assert own.stop() == 0
    assert "Traceback" not in own.log.read_text()


def test_a_namespace_that_is_made_late_or_deleted_holds_up_no_other(
    control_plane: ControlPlane, namespace: str, own_role: Path, tmp_path: Path
):
    other = f"{namespace}-2"
    own = NamespacedOperator(own_role, tmp_path / "operator.log", namespaces=[namespace, other])
    stays, comes_and_goes = Relay(control_plane, namespace, own), Relay(control_plane, other, own)
    try:
        stays.apply(a_document())
        stays.commit("mini")

        control_plane.create_namespace(other)
        role = ["role", "distillchain-operator", "-n", namespace]
        control_plane.apply(_moved(control_plane.get(*role), other))
        subject = f"--serviceaccount={namespace}:distillchain-operator"
        comes_and_goes.kubectl("create", "rolebinding", "operator", "--role=distillchain-operator", subject)
        comes_and_goes.apply(a_document(stages=["mini"]))
        comes_and_goes.commit("mini")

        control_plane.kubectl("delete", "namespace", other)
        stays.commit("tiny")
        stays.wait("three changes told", lambda: own.log.read_text().count("namespaces to work in") == 3)
        own.kill()
        own.start_again()
        stays.apply(a_document(stages=["mini", "tiny", "femto"]))
        stays.commit("femto")
        assert own.process.poll() is None
    finally:
        assert own.stop() == 0
    assert "Traceback" not in own.log.read_text()


def test_an_operator_that_loses_its_role_for_a_while_goes_on_when_it_has_it_again(
    control_plane: ControlPlane, namespace: str, own_role: Path, tmp_path: Path
):
    own = NamespacedOperator(own_role, tmp_path / "operator.log", namespaces=[namespace])
    relay = Relay(control_plane, namespace, own)
    try:
        relay.apply(a_document())
        relay.commit("mini")
        binding = control_plane.get("rolebinding", "distillchain-operator", "-n", namespace)
        relay.kubectl("delete", "rolebinding", "distillchain-operator")
        control_plane.restart_apiserver()  # its watches end, and are begun anew
        relay.wait("it told", lambda: f'"refused": "{namespace}"' in own.log.read_text())
        control_plane.apply(_moved(binding, namespace))
        relay.commit("tiny")
    finally:
        assert own.stop() == 0
    assert "Traceback" not in own.log.read_text()


def _moved(document: dict[str, Any], namespace: str) -> dict[str, Any]:
    return document | {"metadata": {"name": document["metadata"]["name"], "namespace": namespace}}


def test_the_rights_are_no_wider_than_what_is_called(relay: Relay, control_plane: ControlPlane):
    user = "--as=system:serviceaccount:distillchain-system:distillchain-operator"

    def may(verb: str, resource: str) -> bool:
        done = control_plane.kubectl("auth", "can-i", verb, resource, user, "-n", relay.namespace, check=False)
        return done.stdout.strip() == "yes"

    assert may("create", "jobs.batch")
    assert not may("get", "secrets")
    assert not may("delete", "pods")
    assert not may("update", "distillationchains.distillchain.io")
    with pytest.raises(CommandFailed, match="forbidden"):
        control_plane.kubectl("get", "secrets", user, "-n", relay.namespace)


def test_metrics_of_a_live_operator_follow_a_chain_from_pending_to_deleted(relay: Relay):
    def scrape() -> dict[str, float]:
        """The samples of this test's namespace and those without one."""
        with urllib.request.urlopen(f"http://127.0.0.1:{relay.operator.metrics_port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return {
            f"{sample.name}{''.join(f' {v}' for k, v in sorted(sample.labels.items()) if k != 'namespace')}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("namespace", relay.namespace) == relay.namespace
        }

    def wait_for(series: str, value: float | None = None) -> None:
        relay.wait(
            f"{series} to be {value}", lambda: series in (now := scrape()) and (value is None or now[series] == value)
        )

    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    wait_for("distillchain_stage_since_timestamp_seconds relay mini pending")
    relay.run(pod)
    wait_for("distillchain_stage_since_timestamp_seconds relay mini running")
    assert scrape()["distillchain_chains Running"] == 1
    relay.commit("mini")
    wait_for("distillchain_chains Succeeded", 1)
    seen = scrape()
    assert seen["distillchain_stages_committed_total false"] == 1
    assert seen["distillchain_jobs_total created"] >= 1
    assert seen["distillchain_looks_total done"] >= 3
    assert seen["distillchain_api_requests_total 201 POST"] >= 3  # probe, dry run, Job
    assert seen["distillchain_last_resync_timestamp_seconds"] <= time.time()
    assert "distillchain_stage_since_timestamp_seconds relay mini running" not in seen
    relay.kubectl("delete", "dchain", "relay")
    relay.wait("its series gone", lambda: not any(name.startswith("distillchain_chains ") for name in scrape()))


def test_gitops_tools_see_no_drift_and_no_conflict_after_a_chain_has_run(relay: Relay):
    document = a_document(stages=["mini"]) | {"metadata": {"name": "relay", "labels": {"team": "nlp"}}}
    text = json.dumps(document)
    relay.kubectl("apply", "--server-side", "--field-manager=argocd-controller", "-f", "-", input=text)
    relay.run(relay.wait_for_pod("mini"))
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")

    before = relay.chain()
    diff = ["diff", "--server-side", "--field-manager=argocd-controller", "-f", "-"]
    relay.kubectl(*diff, input=text)  # exit code 1 when there is one
    changed = json.dumps(document | {"metadata": {"name": "relay", "labels": {"team": "other"}}})
    assert relay.cluster.kubectl("-n", relay.namespace, *diff, input=changed, check=False).returncode == 1
    relay.kubectl("diff", "-f", "-", input=text)  # as one sees it who applies without server-side

    other = ["apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-"]
    relay.kubectl(*other, input=text)  # raises on a conflict
    after = relay.chain()
    assert (after["spec"], after["status"], after["metadata"]["generation"]) == (before["spec"], before["status"], 1)
    assert after["metadata"].get("finalizers") is None
    assert after["metadata"].get("annotations") is None
    shown = relay.cluster.get("dchain", "relay", "-n", relay.namespace, "--show-managed-fields")
    ours = [entry for entry in shown["metadata"]["managedFields"] if "f:status" in entry["fieldsV1"]]
    assert [entry["subresource"] for entry in ours] == ["status"]
    assert ours[0]["fieldsV1"].keys() == {"f:status"}


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_waiting_deployer_follows_a_chain_to_its_end_by_kstatus(relay: Relay, tmp_path: Path, ends_well: bool):
    """Helm's watcher is kstatus, the library of Flux's `wait`."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: chains, version: 0.1.0}")
    (tmp_path / "templates" / "relay.yaml").write_text(json.dumps(a_document(stages=["mini"])))

    def deploy(verb: str, deadline_s: int) -> str:
        waiting = ["--wait", f"--timeout={deadline_s}s", "--namespace", relay.namespace]
        return helm(
            verb, "chains", str(tmp_path), *waiting, kubeconfig=relay.cluster.kubeconfig, home=tmp_path / "helm"
        )

    with pytest.raises(CommandFailed, match="InProgress"):
        deploy("install", 3)  # the stage waits for its pod
    if ends_well:
        relay.commit("mini")
        relay.wait_for_phase("Succeeded")
        deploy("upgrade", DEADLINE_S)
    else:
        answer = a_failure(relay.planned("mini"), FailureClass.GATE_NOT_MET, "accuracy 0.612 is too low")
        relay.end(relay.wait_for_pod("mini"), exit_code=68, message=answer.to_json(), reason="Error")
        relay.wait_for_phase("Failed")
        with pytest.raises(CommandFailed, match="Failed"):
            deploy("upgrade", DEADLINE_S)
