"""The images that users run: their content, how their processes end, and a chain that runs in both."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.build_images import Archive, Builder, Image
from cluster.images import HOST_PYTHON_IMAGE
from cluster.operator_deployment import Release
from cluster.operator_process import OperatorProcess
from cluster.waiting import wait_until
from cluster.whole import WholeCluster
from distillchain_api.resource.status import ChainStatus
from e2e.conftest import PASSIVE, Relay, femto_stage, tiny_stage
from e2e.pods import END_DEADLINE_S, Pods, a_pod

NewChain = Callable[..., dict[str, Any]]

OPERATOR_BYTES = 300e6
CHAIN_DEADLINE_S = 600  # measured 60

COMPILERS = re.compile(
    r"(.*/)?bin/([a-z0-9_]+-linux-gnu-)?(cc|c99|gcc|g\+\+|c\+\+|cpp|clang|ld|as|make|cargo|go)(-[0-9.]+)?"
)
# The base may contain wheels: its `venv` installs pip from them.
CACHES = re.compile(r"(.*/)?\.cache/.*|var/cache/apt/.*|var/lib/apt/lists/.*|(?!usr/share/python-wheels/).*\.(whl|deb)")
BUILD_TOOLS = re.compile(
    r"opt/distillchain/(bin/(pip|uv).*|lib/[^/]+/site-packages/(pip|uv|hatchling)/.*)|(tools|src|wheel)/.*"
)


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
    """The operator from its image, installed by Helm. It replaces the process that other tests use."""
    operator.kill()
    release = Release(whole_cluster.control_plane, "images")
    values = {"operator": {"progressSeconds": 2}, "crds": {"install": False}}  # the CRD is already installed
    release.install(loaded_operator_image, trainer_image=HOST_PYTHON_IMAGE, values=values)
    yield release
    release.uninstall()
    operator.start()


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
        pytest.param(BUILD_TOOLS, id="build tools"),
    ],
)
def test_the_operators_image_contains_only_what_it_needs(operator_archive: Archive, unwanted: re.Pattern[str]) -> None:
    assert "opt/distillchain/bin/python" in operator_archive.files  # the patterns match paths of this form
    assert [path for path in operator_archive.files if unwanted.fullmatch(path)] == []


@pytest.mark.node
def test_the_labels_of_the_operators_image_are_those_of_this_commit(
    operator_archive: Archive, version: str, repository: Path
) -> None:
    assert_labels(operator_archive, "distillchain_operator", version, repository)


def assert_labels(archive: Archive, module: str, version: str, repository: Path) -> None:
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
    "security",
    [pytest.param({}, id="its own user"), pytest.param({"runAsUser": 1000650000}, id="a user id of OpenShift")],
)
def test_the_operators_image_prints_its_version(
    pods: Pods, loaded_operator_image: Image, version: str, security: dict[str, Any]
) -> None:
    pods.control_plane.apply(a_pod("version", pods.namespace, loaded_operator_image, "--version", **security))

    assert pods.terminated("version")["exitCode"] == 0, pods.log("version")
    assert pods.log("version") == f"distillchain {version}\n"


@pytest.mark.node
def test_an_operator_that_waits_for_its_rights_exits_at_sigterm(pods: Pods, loaded_operator_image: Image) -> None:
    """As process 1 it gets only the signals that it handles, and kopf has not set its handlers yet."""
    pods.control_plane.apply(a_pod("waits", pods.namespace, loaded_operator_image))
    wait_until("the operator to wait for its rights", lambda: "waiting until" in pods.log("waits"), deadline_s=60)

    end, after_s = pods.delete_and_watch("waits")

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
    """The content of the image. The image is loaded into the node, and the archive of 6 GB is deleted."""
    with builder.saved(trainer_image) as archive:
        assert archive.config  # read and cached before the file is deleted
        assert archive.files
        whole_cluster.node.import_image(archive.path)
    return archive


@pytest.mark.images
@pytest.mark.timeout(3600)  # the first build downloads CUDA
def test_a_chain_succeeds_with_both_images_and_no_mount_of_this_machine(
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


COMPILE_AS_TRITON_DOES = """
from triton.runtime.build import compile_module_from_src
source = "#include <Python.h>\\nstatic struct PyModuleDef it = {PyModuleDef_HEAD_INIT, \\"it\\"};"
source += "PyMODINIT_FUNC PyInit_it(void) { return PyModule_Create(&it); }"
print(compile_module_from_src(source, "it").__name__)
"""


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_triton_compiles_in_the_trainers_image_with_a_read_only_root(
    pods: Pods, trainer_image: Image, trainer_archive: Archive
) -> None:
    pod = a_pod("compiles", pods.namespace, trainer_image)
    container = pod["spec"]["containers"][0]
    container |= {"command": ["python", "-c", COMPILE_AS_TRITON_DOES], "args": []}
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    pod["spec"]["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    pods.control_plane.apply(pod)

    assert pods.terminated("compiles", deadline_s=120)["exitCode"] == 0, pods.log("compiles")
    assert pods.log("compiles") == "it\n"


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_helm_test_passes_with_both_images(
    operator_in_a_pod: Release, loaded_operator_image: Image, trainer_image: Image, trainer_archive: Archive
) -> None:
    """In the operator's namespace, which has Pod Security `restricted`."""
    cpu = {"resources": {"requests": {"cpu": "100m"}}}
    values = {"crds": {"install": False}, "test": cpu}
    operator_in_a_pod.install(loaded_operator_image, trainer_image=trainer_image.name, values=values)
    assert "Succeeded" in operator_in_a_pod.test()


@pytest.mark.images
@pytest.mark.timeout(3600)
def test_the_trainers_image_contains_neither_kopf_nor_kubernetes_nor_scikit_learn_nor_cache(
    trainer_archive: Archive, version: str, repository: Path
) -> None:
    unwanted = (re.compile(r".*/site-packages/(kopf|kubernetes|sklearn)/.*"), CACHES, BUILD_TOOLS)
    assert any(path.endswith("/site-packages/torch/__init__.py") for path in trainer_archive.files)
    assert [path for path in trainer_archive.files if any(each.fullmatch(path) for each in unwanted)] == []
    assert_labels(trainer_archive, "distillchain_trainer", version, repository)
