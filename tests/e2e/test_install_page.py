"""docs/install.md on a cluster with a node: its first commands, a chain that succeeds, its report, and uninstall.

tests/docs runs all blocks of the page on an API server without a node.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser

from browser import watched_page
from cluster.build_images import Builder
from cluster.images import HOST_PYTHON_IMAGE
from cluster.operator_process import OPERATOR_NAMESPACE
from cluster.waiting import wait_until
from cluster.whole import WholeCluster
from docs.blocks import Block, blocks
from docs.shell import a_checkout, environment, run_block
from e2e.conftest import PASSIVE, chain_of, femto_stage, relay_in
from e2e.pods import END_DEADLINE_S, Pods

REGISTRY = "registry.example"  # as on the page
NAME = "reviews"
WATCH_DEADLINE_S = 600  # measured 25


@pytest.fixture
def empty_cluster(tmp_path: Path) -> Iterator[WholeCluster]:
    """A cluster without distillchain."""
    with WholeCluster(tmp_path / "cluster") as running:
        yield running


@pytest.mark.timeout(3600)  # the first build of the trainer's image downloads CUDA
@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param("this machine's Python", marks=pytest.mark.node),
        pytest.param("its image", marks=pytest.mark.images),
    ],
)
def test_from_the_three_commands_to_the_report_and_to_uninstall(
    empty_cluster: WholeCluster, builder: Builder, browser: Browser, tmp_path: Path, trainer: str
) -> None:
    node, s3, control_plane = empty_cluster.node, empty_cluster.s3, empty_cluster.control_plane
    operator_image = builder.build("operator", registry=REGISTRY)
    builder.load(operator_image, node)
    if trainer == "its image":
        builder.load(builder.build("trainer", registry=REGISTRY), node)
        template: dict[str, Any] = {"pod": PASSIVE}
    else:
        node.ctr("images", "tag", HOST_PYTHON_IMAGE, operator_image.name.replace("-operator:", "-trainer:"))
        template = {}
    (tmp_path / "data").mkdir()  # all of this folder is uploaded, and beside it etcd writes
    relay = relay_in(s3, tmp_path / "data")
    chain = chain_of(relay, s3, [femto_stage(relay)], name=NAME, bucket=s3.ensure_bucket("models"), **template)
    chain["spec"]["teacher"] = {"model": relay.tiny}
    checkout = a_checkout(tmp_path / "checkout")
    (checkout / "chain.yaml").write_text(yaml.safe_dump(chain))
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    (checkout / "s3.env").write_text("".join(f"{name}={value}\n" for name, value in keys.items()))
    variables = environment(tmp_path, control_plane.binaries, KUBECONFIG=str(control_plane.kubeconfig))

    run_block(the_block("docs/install.md", "helm install"), checkout, variables=variables)
    watched = command("kubectl", "distillchain", "status", NAME, "--watch", cwd=checkout, variables=variables)

    assert watched.returncode == 0, f"{watched.stdout}\n{watched.stderr}\n{state_of(empty_cluster)}"
    status = control_plane.get(f"distillationchain/{NAME}")["status"]
    assert (status["phase"], [stage["phase"] for stage in status["stages"]]) == ("Succeeded", ["Committed"])
    (pod,) = control_plane.get("pods", "-l", f"distillchain.io/chain={NAME}")["items"]
    assert pod["spec"]["containers"][0]["image"] == operator_image.name.replace("-operator:", "-trainer:")

    written = command(
        *("distillchain", "report", NAME, "--to", "report.html"), cwd=checkout, variables=variables | s3.environment()
    )
    assert written.returncode == 0, written.stderr
    address = (checkout / "report.html").as_uri()
    with watched_page(browser, lambda requested: requested in (address, "data:,"), offline=True) as page:
        page.goto(address)
        assert NAME in page.title()
        assert page.locator("svg").first.is_visible()

    assert_operator_exits_at_sigterm(empty_cluster)
    run_block(the_block("docs/operations.md", "helm uninstall"), checkout, variables=variables)
    system = ("-n", OPERATOR_NAMESPACE)
    kinds = "deploy,svc,cm,sa,role,rolebinding,secret,lease,pod"
    wait_until("the release to be deleted", lambda: ours(empty_cluster, kinds, *system) == [], deadline_s=60)
    everywhere = "clusterrole,clusterrolebinding,priorityclass,validatingwebhookconfiguration,crd"
    assert ours(empty_cluster, everywhere) == ["distillationchains.distillchain.io"]
    assert control_plane.get(f"distillationchain/{NAME}")["status"] == status
    assert control_plane.get("secret/s3-credentials")
    manifest = f"distill/stages/{status['stages'][0]['digest']}/manifest.json"
    assert s3.client().head_object(Bucket="models", Key=manifest)["ContentLength"]


def the_block(page: str, start: str) -> Block:
    (found,) = [block for block in blocks("bash", page=page) if block.text.startswith(start)]
    return found


def command(*argv: str, cwd: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=cwd, env=variables, text=True, capture_output=True, check=False, timeout=WATCH_DEADLINE_S
    )


def assert_operator_exits_at_sigterm(cluster: WholeCluster) -> None:
    selector = ("-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/component=operator")
    (pod,) = cluster.control_plane.get("pods", *selector)["items"]
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    end, after_s = Pods(cluster, OPERATOR_NAMESPACE).delete_and_watch(pod["metadata"]["name"])
    assert end["exitCode"] == 0
    assert after_s < END_DEADLINE_S


def ours(cluster: WholeCluster, kinds: str, *where: str) -> list[str]:
    """Names of the objects that belong to distillchain and not to Kubernetes itself."""
    items = json.loads(cluster.control_plane.kubectl("get", kinds, *where, "-o", "json").stdout)["items"]
    names = [str(item["metadata"]["name"]) for item in items]
    return [name for name in names if "distillchain" in name or "distillationchain" in name]


def state_of(cluster: WholeCluster) -> str:
    commands = [
        ("get", "dchain,jobs,pods,events", "-A"),
        ("logs", "-n", "distillchain-system", "-l", "app.kubernetes.io/component=operator", "--tail=40"),
        ("logs", "-l", "distillchain.io/chain", "--tail=40"),
    ]
    return "\n".join(cluster.control_plane.kubectl(*words, check=False).stdout for words in commands)
