"""`status` and `retry` against a real API server; the tests write the status, as the operator would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_commit, a_document
from cli.parts import distillchain, example_in_help, write_chain
from cluster.controlplane import ControlPlane
from cluster.s3 import S3Server
from cluster.waiting import wait_until
from distillchain_api.chain import DistillationChain, parse_chain
from distillchain_api.failures import FailureClass
from distillchain_api.status import ChainStatus, StageStatus
from distillchain_cli.run import build_status
from distillchain_operator.plan import build_plan
from distillchain_operator.status import committed_entry

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("cli")]

DEADLINE_S = 30
NAME = "sst2-femto"
MOMENT = "2026-01-01T12:00:00Z"


class Scene:
    """A chain in a namespace: mini committed, tiny failed (or still running)."""

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
        """The Job of tiny, suspended: no pods, only the Job counts here."""
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

    def fail_job(self) -> None:
        conditions = [
            {"type": kind, "status": "True", "reason": "PodFailurePolicy", "lastTransitionTime": MOMENT}
            for kind in ("FailureTarget", "Failed")
        ]
        self._patch("job", self.job, {"startTime": MOMENT, "conditions": conditions})

    def write_status(self, *, tiny: str) -> ChainStatus:
        plan = build_plan(self.chain)
        mini = committed_entry(plan.stages[0], a_commit(plan.stages[0]), job="gone", attempt=1)
        entry = StageStatus.model_validate(
            {
                "name": "tiny",
                "phase": tiny,
                "digest": plan.stages[1].digest,
                "job": self.job,
                "attempt": 1,
                "message": "labels differ" if tiny == "Failed" else None,
                "failure_class": FailureClass.LABEL_MISMATCH if tiny == "Failed" else None,
            }
        )
        status = build_status(plan, [mini, entry])
        self._patch("dchain", NAME, status.to_document())
        return status

    def _patch(self, kind: str, name: str, status: dict[str, Any]) -> None:
        patch = json.dumps({"status": status})
        self.cluster.kubectl(
            "-n", self.namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", patch
        )

    def distillchain(self, *arguments: str) -> Any:
        """As a person whose context is of this namespace."""
        document = json.loads(json.dumps(self._kubeconfig()))
        document["contexts"][0]["context"]["namespace"] = self.namespace
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps(document))
        return distillchain(*arguments, cwd=self.folder, KUBECONFIG=str(path))

    def _kubeconfig(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(Path(self.cluster.kubeconfig).read_text())
        return content

    def has_job(self) -> bool:
        return self.cluster.kubectl("-n", self.namespace, "get", "job", self.job, check=False).returncode == 0


@pytest.fixture
def scene(control_plane: ControlPlane, namespace: str, tmp_path: Path, repository: Path) -> Scene:
    return Scene(control_plane, namespace, tmp_path, repository)


def test_status_shows_every_stage(scene: Scene):
    scene.write_status(tiny="Failed")

    done = scene.distillchain("status", NAME)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{scene.namespace}/{NAME}: Failed, 1/2 stages committed",
        "tiny: labels differ",
        "",
        "STAGE  PHASE      ATTEMPT  PARAMETERS  ACCURACY     TIME  MESSAGE",
        "mini   Committed        1        1.0M    0.8500  0:00:41  -",
        "tiny   Failed           1           -         -        -  labels differ",
    ]


def test_status_in_json_is_what_the_cluster_holds(scene: Scene):
    want = scene.write_status(tiny="Running")

    done = scene.distillchain("status", NAME, "-o", "json")

    assert ChainStatus.parse(done.stdout) == want


def test_a_chain_nobody_looked_at_has_a_status_too(scene: Scene):
    done = scene.distillchain("status", NAME)

    assert done.stdout == f"{scene.namespace}/{NAME}: Pending, the operator has not looked at it yet\n"
    assert done.stderr == "generation 1 is not looked at yet; this status is of generation 0\n"


def test_retry_deletes_the_job_of_the_failed_stage(scene: Scene):
    scene.write_status(tiny="Failed")
    scene.fail_job()

    done = scene.distillchain("retry", NAME)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"deleted Job {scene.job} of stage tiny (LabelMismatch); the operator makes it anew\n"
    wait_until("the Job to be gone", lambda: not scene.has_job(), deadline_s=DEADLINE_S)


def test_a_job_that_runs_again_is_left_alone(scene: Scene):
    scene.write_status(tiny="Failed")  # a moment behind: the Job has not failed

    done = scene.distillchain("retry", NAME)

    assert done.returncode == 1
    assert done.stderr == f"nothing to retry: Job {scene.job} of stage tiny has not ended\n"
    assert scene.has_job()


@pytest.mark.parametrize(
    "arguments, code, want",
    [
        pytest.param(
            [NAME], 1, "nothing to retry: sst2-femto is Running and none of its stages failed\n", id="none failed"
        ),
        pytest.param(
            [NAME, "--stage", "mini"],
            1,
            "nothing to retry: stage mini of sst2-femto is Committed, not Failed\n",
            id="committed",
        ),
        pytest.param(
            [NAME, "--stage", "huge"], 2, "--stage: got huge, expected one of mini, tiny\n", id="no such stage"
        ),
    ],
)
def test_where_nothing_failed_there_is_nothing_to_retry(scene: Scene, arguments: list[str], code: int, want: str):
    scene.write_status(tiny="Running")

    done = scene.distillchain("retry", *arguments)

    assert (done.returncode, done.stdout, done.stderr) == (code, "", want)
    assert scene.has_job()


def test_an_unknown_chain_is_told_with_its_namespace(scene: Scene):
    done = scene.distillchain("status", "nobody")

    assert done.returncode == 1
    assert done.stderr == (
        f"there is no DistillationChain nobody in namespace {scene.namespace}; see kubectl get distillationchains -A\n"
    )


def test_another_namespace_and_context_can_be_named(scene: Scene):
    assert scene.distillchain("status", NAME, "-n", "default").returncode == 1
    assert scene.distillchain("status", NAME, "--context", "nowhere").returncode == 2


@pytest.mark.parametrize("command", ["status", "retry"])
def test_the_example_of_each_help_works(scene: Scene, command: str):
    scene.write_status(tiny="Failed")
    scene.fail_job()

    done = scene.distillchain(*example_in_help(command, cwd=scene.folder))

    assert done.returncode == 0, done.stderr


def test_a_server_that_is_away_is_told_at_once(scene: Scene):
    done = scene.distillchain("status", NAME)
    path = scene.folder / "kubeconfig"
    document = json.loads(path.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path.write_text(json.dumps(document))

    done = distillchain("status", NAME, cwd=scene.folder, KUBECONFIG=str(path))

    assert done.returncode == 1
    assert done.stderr.startswith("the API server https://127.0.0.1:1 cannot be reached: ")
    assert done.stderr.count("\n") == 1


def test_a_plan_reads_a_store_on_s3_with_the_credentials_of_the_environment(s3: S3Server, bucket: str, tmp_path: Path):
    write_chain(tmp_path, storage={"uri": f"{bucket}/distill", "endpointUrl": s3.endpoint})

    identity = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    known = distillchain("plan", "chain.yaml", cwd=tmp_path, **identity)
    stranger = {**identity, "AWS_SECRET_ACCESS_KEY": "wrong"}
    unknown = distillchain("plan", "chain.yaml", cwd=tmp_path, **stranger)

    assert known.returncode == 0, known.stderr
    assert known.stdout.count("not in the store") == 2
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("spec.storage")
    assert unknown.stderr.count("\n") == 1
