"""The images that users run: what is in them, how they end, and that a chain gets through with them."""

from __future__ import annotations

import re
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.build_images import Archive, Builder, Image
from cluster.images import HOST_PYTHON_IMAGE
from cluster.operator_deployment import Release
from cluster.operator_process import OPERATOR_NAMESPACE, OperatorProcess
from cluster.waiting import wait_until
from cluster.whole import WholeCluster
from distillchain_api.resource.status import ChainStatus
from e2e.conftest import PASSIVE, Relay, femto_stage, tiny_stage

NewChain = Callable[..., dict[str, Any]]

OPERATOR_BYTES = 300e6
END_DEADLINE_S = 10  # of the 30 that a kubelet gives; measured 1
CHAIN_DEADLINE_S = 600  # measured 60
FINALIZER = "distillchain.io/tests"

COMPILERS = re.compile(
    r"(.*/)?bin/([a-z0-9_]+-linux-gnu-)?(cc|c99|gcc|g\+\+|c\+\+|cpp|clang|ld|as|make|cargo|go)(-[0-9.]+)?"
)
# The wheels that are allowed are the base's own: its `venv` makes pip from them.
CACHES = re.compile(r"(.*/)?\.cache/.*|var/cache/apt/.*|var/lib/apt/lists/.*|(?!usr/share/python-wheels/).*\.(whl|deb)")
BUILD_TOOLS = re.compile(
    r"opt/distillchain/(bin/(pip|uv).*|lib/[^/]+/site-packages/(pip|uv|hatchling)/.*)|(tools|src|wheel)/.*"
)

RESTRICTED = {
    "runAsNonRoot": True,  # without runAsUser: the kubelet takes the image's user, and only a number that is not 0
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="session")
def operator_image(builder: Builder) -> Image:
    return builder.build("operator")


@pytest.fixture(scope="session")
def operator_archive(builder: Builder, operator_image: Image) -> Iterator[Archive]:
    with builder.saved(operator_image) as archive:
        yield archive


@pytest.fixture(scope="session")
def loaded_operator_image(whole_cluster: WholeCluster, operator_image: Image, operator_archive: Archive) -> Image:
    whole_cluster.node.import_image(operator_archive.path)
    return operator_image


@pytest.fixture
def operator_in_a_pod(
    whole_cluster: WholeCluster, operator: OperatorProcess, loaded_operator_image: Image
) -> Iterator[Release]:
    """The operator from its image, installed by Helm, in the place of the process that other tests use."""
    operator.kill()
    release = Release(whole_cluster.control_plane, "images")
    values = {"operator": {"progressSeconds": 2}, "crds": {"install": False}}  # the CRD is there already
    release.install(loaded_operator_image, trainer_image=HOST_PYTHON_IMAGE, values=values)
    yield release
    release.uninstall()
    operator.start()


def a_pod(name: str, namespace: str, image: Image, *args: str, **security: Any) -> dict[str, Any]:
    """The image's own entrypoint, as restricted as Pod Security demands."""
    container = {"name": "it", "image": image.name, "args": list(args), "securityContext": {**RESTRICTED, **security}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }


class Pods:
    """Pods of one namespace whose end is looked at."""

    def __init__(self, cluster: WholeCluster, namespace: str) -> None:
        self.control_plane, self.namespace = cluster.control_plane, namespace

    def terminated(self, name: str, *, deadline_s: float = 60) -> dict[str, Any]:
        """How its container ended."""

        def ended() -> dict[str, Any] | None:
            pod = self.control_plane.get(f"pod/{name}", "-n", self.namespace)
            (container,) = pod["status"].get("containerStatuses") or [{"state": {}}]
            state: dict[str, Any] | None = container["state"].get("terminated")
            return state

        def dump() -> str:
            words = (f"pod/{name}", "-n", self.namespace)
            described = self.control_plane.kubectl("describe", *words, check=False).stdout
            return f"{described}\n{self.log(name)}"

        return wait_until(f"pod {name} to end", ended, deadline_s=deadline_s, dump=dump)

    def log(self, name: str) -> str:
        return self.control_plane.kubectl("logs", name, "-n", self.namespace, check=False).stdout

    def delete_and_watch(self, name: str) -> tuple[dict[str, Any], float]:
        """Deletes it as anybody does: its container's end, and after how many seconds; a finalizer lets it be seen."""
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


@pytest.fixture
def pods(whole_cluster: WholeCluster, cluster_namespace: str) -> Pods:
    label = "pod-security.kubernetes.io/enforce=restricted"
    whole_cluster.control_plane.kubectl("label", "namespace", cluster_namespace, label)
    return Pods(whole_cluster, cluster_namespace)


@pytest.fixture(scope="session")
def version(repository: Path) -> str:
    return str(tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"])


@pytest.mark.node
def test_the_operators_image_is_small(operator_archive: Archive) -> None:
    assert operator_archive.size_bytes <= OPERATOR_BYTES


@pytest.mark.node
@pytest.mark.parametrize(
    "unwanted",
    [
        pytest.param(
            re.compile(r".*/site-packages/(torch|nvidia|transformers|datasets|boto3|botocore)/.*"), id="models, S3"
        ),
        pytest.param(COMPILERS, id="compilers"),
        pytest.param(CACHES, id="caches"),
        pytest.param(BUILD_TOOLS, id="tools of the build"),
    ],
)
def test_the_operators_image_holds_only_what_it_needs(operator_archive: Archive, unwanted: re.Pattern[str]) -> None:
    assert "opt/distillchain/bin/python" in operator_archive.files  # the paths are as the patterns expect them
    assert [path for path in operator_archive.files if unwanted.fullmatch(path)] == []


@pytest.mark.node
def test_the_operators_image_says_what_it_is(operator_archive: Archive, version: str, repository: Path) -> None:
    assert_it_says_what_it_is(operator_archive, "distillchain_operator", version, repository)


def assert_it_says_what_it_is(archive: Archive, module: str, version: str, repository: Path) -> None:
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, text=True, capture_output=True, check=True)
    config = archive.config
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["version"] == version
    assert labels["revision"].removesuffix("-dirty") == revision.stdout.strip()
    assert labels["licenses"] == "Apache-2.0"
    assert labels["source"].startswith("https://")
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["python", "-m", module]


@pytest.mark.node
@pytest.mark.parametrize(
    "security", [pytest.param({}, id="its own user"), pytest.param({"runAsUser": 1000650000}, id="a user of OpenShift")]
)
def test_the_operators_image_tells_its_version(
    pods: Pods, loaded_operator_image: Image, version: str, security: dict[str, Any]
) -> None:
    pods.control_plane.apply(a_pod("version", pods.namespace, loaded_operator_image, "--version", **security))

    assert pods.terminated("version")["exitCode"] == 0, pods.log("version")
    assert pods.log("version") == f"distillchain {version}\n"


@pytest.mark.node
def test_an_operator_without_rights_still_ends_at_sigterm(pods: Pods, loaded_operator_image: Image) -> None:
    """Process 1 gets only the signals that it handles, also before kopf has set its handlers."""
    pods.control_plane.apply(a_pod("waits", pods.namespace, loaded_operator_image))
    wait_until("the operator to wait", lambda: "waiting for" in pods.log("waits"), deadline_s=60)

    end, after_s = pods.delete_and_watch("waits")

    assert end["exitCode"] == 0
    assert after_s < END_DEADLINE_S


@pytest.mark.node
@pytest.mark.timeout(1200)
def test_the_operator_from_its_image_carries_out_a_chain_and_ends_at_sigterm(
    whole_cluster: WholeCluster, operator_in_a_pod: Release, relay: Relay, new_chain: NewChain
) -> None:
    chain = new_chain("imaged", [femto_stage(relay)])
    fine_tune = {"epochs": 1, "learningRate": 1e-4}
    chain["spec"]["teacher"] = {"model": relay.tiny, "fineTune": fine_tune}  # stage zero, in seconds

    status = run_to_success(operator_in_a_pod, chain)

    assert [stage.phase for stage in status.stages] == ["Committed"] * len(status.stages)
    operators = Pods(whole_cluster, OPERATOR_NAMESPACE)
    (pod,) = whole_cluster.control_plane.get("pods", *operator_in_a_pod.pods)["items"]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    end, after_s = operators.delete_and_watch(pod["metadata"]["name"])
    assert end["exitCode"] == 0
    assert after_s < END_DEADLINE_S


def run_to_success(release: Release, chain: dict[str, Any]) -> ChainStatus:
    control_plane, namespace = release.control_plane, chain["metadata"]["namespace"]
    name = f"distillationchain/{chain['metadata']['name']}"
    control_plane.apply(chain)

    def ended() -> ChainStatus | None:
        status = ChainStatus.parse(control_plane.get(name, "-n", namespace).get("status", {}))
        return status if status.phase in ("Succeeded", "Failed") else None

    def dump() -> str:
        seen = control_plane.kubectl("get", f"{name},jobs,pods,events", "-n", namespace, check=False).stdout
        words = ("-n", namespace, "-l", "distillchain.io/chain", "--tail=30", "--prefix")
        logs = control_plane.kubectl("logs", *words, check=False).stdout
        return f"{seen}\n{logs}\n--- operator\n{release.describe()}"

    status = wait_until(f"{name} to end", ended, deadline_s=CHAIN_DEADLINE_S, dump=dump)
    assert status.phase == "Succeeded", dump()
    return status


@pytest.fixture(scope="session")
def trainer_image(builder: Builder) -> Image:
    return builder.build("trainer")


@pytest.fixture(scope="session")
def trainer_archive(whole_cluster: WholeCluster, builder: Builder, trainer_image: Image) -> Archive:
    """What is in the image; the node knows it from here on, and the archive's 6 GB are gone again."""
    with builder.saved(trainer_image) as archive:
        assert archive.config  # read now, and kept
        assert archive.files
        whole_cluster.node.import_image(archive.path)
    return archive


@pytest.mark.images
@pytest.mark.timeout(3600)  # the first build brings CUDA
def test_a_chain_succeeds_with_both_images_and_nothing_of_this_machine(
    whole_cluster: WholeCluster,
    operator_in_a_pod: Release,
    trainer_image: Image,
    trainer_archive: Archive,
    pods: Pods,
    relay: Relay,
    new_chain: NewChain,
    version: str,
) -> None:
    pods.control_plane.apply(a_pod("version", pods.namespace, trainer_image, "--version"))
    assert pods.terminated("version", deadline_s=120)["exitCode"] == 0, pods.log("version")
    assert pods.log("version") == f"distillchain-trainer {version}\n"

    restricted = "pod-security.kubernetes.io/enforce=restricted"
    pods.control_plane.kubectl("label", "namespace", pods.namespace, restricted)
    stages = [tiny_stage(relay), femto_stage(relay)]
    chain = new_chain("images", stages, image=trainer_image.name, pod=PASSIVE)

    status = run_to_success(operator_in_a_pod, chain)

    assert [stage.phase for stage in status.stages] == ["Committed"] * len(status.stages)
    trainers = pods.control_plane.get("pods", "-n", pods.namespace, "-l", "distillchain.io/chain=images")["items"]
    assert len(trainers) == len(status.stages)
    for trainer in trainers:
        assert [volume for volume in trainer["spec"]["volumes"] if "hostPath" in volume] == []
        assert trainer["spec"]["containers"][0]["image"] == trainer_image.name


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_helm_test_passes_with_both_images(
    operator_in_a_pod: Release, loaded_operator_image: Image, trainer_image: Image, trainer_archive: Archive
) -> None:
    """In the operator's namespace, which is `restricted`."""
    cpu = {"resources": {"requests": {"cpu": "100m"}}}
    values = {"crds": {"install": False}, "test": cpu}
    operator_in_a_pod.install(loaded_operator_image, trainer_image=trainer_image.name, values=values)
    assert "Succeeded" in operator_in_a_pod.test()


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_the_trainers_image_holds_neither_kopf_nor_kubernetes_nor_compiler_nor_cache(
    trainer_archive: Archive, version: str, repository: Path
) -> None:
    unwanted = (re.compile(r".*/site-packages/(kopf|kubernetes)/.*"), COMPILERS, CACHES, BUILD_TOOLS)
    assert any(path.endswith("/site-packages/torch/__init__.py") for path in trainer_archive.files)
    assert [path for path in trainer_archive.files if any(each.fullmatch(path) for each in unwanted)] == []
    assert_it_says_what_it_is(trainer_archive, "distillchain_trainer", version, repository)
