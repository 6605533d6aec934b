"""A release from install to uninstall on a node, with the operator in a pod, while a stage trains.

The images are this machine's Python (cluster.images), which mounts host folders, so the namespace cannot be `restricted`
here. test_chart_on_apiserver.py checks the pods of the real images for that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.helm import CHART, documents, helm, named, render
from cluster.errors import CommandFailed
from cluster.images import CHECKOUT, HOST_PYTHON_IMAGE, host_python_pod_template
from cluster.waiting import wait_until
from cluster.whole import WholeCluster

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]

RELEASE = "relay"
KINDS = "deploy,svc,cm,sa,role,rolebinding,secret,clusterrole,clusterrolebinding,pod,job"


class Release:
    """A release in its own namespace."""

    def __init__(self, cluster: WholeCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.control_plane = cluster.control_plane
        self.namespace = "relay-system"
        self.control_plane.create_namespace(self.namespace)
        self.values = folder / "values.yaml"
        self.values.write_text(yaml.safe_dump(host_python_values()))

    def helm(self, *args: str) -> str:
        given = ["--namespace", self.namespace]
        try:
            return helm(*args, *given, kubeconfig=self.control_plane.kubeconfig, home=self.folder)
        except CommandFailed as failure:
            raise AssertionError(f"{failure}\n{self.dump()}") from failure

    def apply(self, verb: str, *args: str) -> str:
        return self.helm(verb, RELEASE, str(CHART), "--values", str(self.values), "--wait", "--timeout", "60s", *args)

    def get(self, *args: str) -> dict[str, Any]:
        return self.control_plane.get(*args, "-n", self.namespace)

    def wait(self, what: str, probe: Any, *, deadline_s: float = 120) -> Any:
        return wait_until(what, probe, deadline_s=deadline_s, dump=self.dump, poll_s=0.5)

    def dump(self) -> str:
        asked = [
            ("get", "dchain,deploy,pod,job,events"),
            ("logs", "-l", "app.kubernetes.io/component=operator", "--tail=40"),
        ]
        chains = ("logs", "-l", "distillchain.io/chain", "--all-containers", "--tail=40", "--prefix")
        return "\n".join(
            self.control_plane.kubectl(*args, "-n", self.namespace, check=False).stdout for args in [*asked, chains]
        )

    def operator_pod(self) -> str:
        """The UID of the only one; after an upgrade the old pod still stops while the new one is ready."""

        def only_one() -> str | None:
            pods = self.get("pods", "-l", "app.kubernetes.io/component=operator")["items"]
            return str(pods[0]["metadata"]["uid"]) if len(pods) == 1 else None

        return str(self.wait("one operator", only_one))


def host_python_values() -> dict[str, Any]:
    """Values for which both images are this machine's Python, with mounts and paths as a user would set them."""
    operator_path = ":".join(str(CHECKOUT / package) for package in ("api", "operator"))
    operator = host_python_pod_template(environment={"PYTHONPATH": operator_path})["spec"]
    registry, rest = HOST_PYTHON_IMAGE.split("/", 1)
    repository, tag = rest.split(":")
    image = {"registry": registry, "repository": repository, "tag": tag}
    trainer = host_python_pod_template(environment={"OMP_WAIT_POLICY": "PASSIVE"})
    return {
        "image": image,
        "extraEnv": operator["containers"][0]["env"],
        "extraVolumes": operator["volumes"],
        "extraVolumeMounts": operator["containers"][0]["volumeMounts"],
        "operator": {"progressSeconds": 2, "logFormat": "plain"},
        "readinessProbe": {"periodSeconds": 1},
        "startupProbe": {"periodSeconds": 1},
        "chains": {"image": image, "podTemplate": trainer},
        "test": {"resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "2Gi"}}},
    }


@pytest.fixture
def release(whole_cluster: WholeCluster, tmp_path: Path) -> Iterator[Release]:
    made = Release(whole_cluster, tmp_path)
    yield made
    made.control_plane.kubectl("delete", "dchain", "--all", "-n", made.namespace, check=False)
    made.control_plane.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture
def chain(release: Release, cluster_bucket: str, tmp_path: Path) -> dict[str, Any]:
    """Two stages on the sentences and teacher of `helm test`, in S3; the first trains for about 45 s."""
    subprocess.run([sys.executable, str(CHART / "files" / "prepare.py"), str(tmp_path / "material")], check=True)
    s3, bucket = release.cluster.s3, cluster_bucket.removeprefix("s3://")
    for path in sorted((tmp_path / "material").rglob("*.*")):
        s3.client().upload_file(str(path), bucket, path.relative_to(tmp_path / "material").as_posix())
    secret = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    release.control_plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3", "namespace": release.namespace},
            "stringData": secret,
        }
    )
    made = named(documents(render()), "DistillationChain")
    made["metadata"] = {"name": "long", "namespace": release.namespace}
    spec = made["spec"]
    del spec["template"]["pod"]  # the chart's default for chains is used
    spec["task"]["dataset"]["uri"] = f"{cluster_bucket}/data"
    spec["storage"] = {"uri": f"{cluster_bucket}/store", "endpointUrl": s3.endpoint, "secretRef": {"name": "s3"}}
    spec["teacher"]["model"] = f"{cluster_bucket}/teacher"
    (stage,) = spec["stages"]
    stage["student"]["tokenizer"] = f"{cluster_bucket}/teacher"
    long = stage | {"name": "long", "training": {"epochs": 240, "learningRate": 1e-3}, "gate": {}}
    spec["stages"] = [long, stage]
    return made


def test_a_running_stage_survives_upgrade_and_rollback_and_its_chain_survives_uninstall(
    release: Release, chain: dict[str, Any]
):
    release.apply("install")
    output = release.helm("test", RELEASE, "--logs", "--timeout", "150s")
    assert "Succeeded" in output
    assert release.get("dchain")["items"] == []  # the hook deletes its chain

    release.control_plane.apply(chain)
    selector = "distillchain.io/chain=long"

    def trains() -> dict[str, Any] | None:
        pods = release.get("pods", "-l", selector)["items"]
        if not pods or pods[0]["status"]["phase"] != "Running":
            return None
        name = pods[0]["metadata"]["name"]
        log = release.control_plane.kubectl("logs", name, "-n", release.namespace, check=False).stdout
        return pods[0] if '"phase":"Train"' in log else None

    pod = release.wait("the first stage to train", trains)
    before = release.operator_pod()
    # Another default for the pods of chains: the running stage is left alone, and the next one gets it.
    release.apply("upgrade", "--set", "chains.storage.region=eu-west-1", "--set", "operator.logLevel=debug")
    upgraded = release.operator_pod()
    assert upgraded != before
    assert stage_uids(release, selector, "long") == [pod["metadata"]["uid"]]
    assert pod_phase(release, pod) == "Running", "the stage ended before the rollback; give it more epochs"
    release.helm("rollback", RELEASE, "1", "--wait", "--timeout", "120s")
    assert release.operator_pod() != upgraded

    def succeeded() -> dict[str, Any] | None:
        status: dict[str, Any] = release.get("dchain/long").get("status", {})
        assert status.get("phase") != "Failed", status["message"]
        return status if status.get("phase") == "Succeeded" else None

    status = release.wait("the chain to succeed", succeeded, deadline_s=600)
    assert [(stage["name"], stage["attempt"], stage["reused"]) for stage in status["stages"]] == [
        ("long", 1, False),
        ("tiny", 1, False),
    ]
    assert stage_uids(release, selector, "long") == [pod["metadata"]["uid"]]

    release.helm("uninstall", RELEASE, "--wait")
    release.wait("the operator's Lease to go with its service account", lambda: not release.get("leases")["items"])
    mine = ("-l", f"app.kubernetes.io/instance={RELEASE}")
    release.wait("the objects with the release's label to be gone", lambda: not release.get(KINDS, *mine)["items"])
    assert release.get("dchain/long")["status"] == status
    assert release.control_plane.get("crd/distillationchains.distillchain.io")["metadata"]["annotations"]


def stage_uids(release: Release, selector: str, stage: str) -> list[str]:
    pods = release.get("pods", "-l", f"{selector},distillchain.io/stage={stage}")["items"]
    return [pod["metadata"]["uid"] for pod in pods]


def pod_phase(release: Release, pod: dict[str, Any]) -> str:
    return str(release.get(f"pods/{pod['metadata']['name']}")["status"]["phase"])
