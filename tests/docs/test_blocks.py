"""Runs the commands, programs and manifests of the documentation that need an API server or a store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from chain_builders import a_commit, a_document
from cluster.build import ensure_binaries
from cluster.controlplane import ControlPlane
from cluster.s3 import S3Server
from distillchain_api.failures import FailureClass
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import StageStatus
from distillchain_cli.local.run import build_status
from distillchain_operator.jobs.pod_template import overlay
from distillchain_operator.status.committed import committed_entry
from docs.blocks import REPOSITORY, Block, blocks
from docs.catalogue import VALUES, Scene, of
from docs.shell import a_checkout, environment, run_block

CHART = REPOSITORY / "charts" / "distillchain"
NAME = "sst2-femto"
on_one_worker = pytest.mark.xdist_group("docs")


# A store.


@pytest.mark.cluster
@pytest.mark.parametrize("block", of(Scene.S3))
@on_one_worker
def test_on_a_store(block: Block, s3: S3Server, chain: Chain, tmp_path: Path) -> None:
    s3.ensure_bucket("models")
    # Other tests may have left chains without a status, and the program stops if it finds one.
    others = f"--field-selector=metadata.namespace!={chain.namespace}"
    chain.cluster.kubectl("delete", "distillationchains", "--all-namespaces", others)
    chain.write_status(failed=True)
    control = {"name": "tiny-direct-s1", "phase": "Committed", "digest": "b" * 64}
    chain.patch_status({"evidence": [control]})
    for digest in ("a" * 64, control["digest"], chain.digest):
        s3.client().put_object(Bucket="models", Key=f"distill/stages/{digest}/manifest.json", Body=b"{}")

    done = run_block(block, tmp_path, variables=chain.variables | s3.environment())

    want = {
        "docs/install.md": "the store is fit: it refused to overwrite",
        "docs/operations.md": f"s3://models/distill/stages/{'a' * 64}/",
    }
    assert done.stdout.strip() == want[block.page]


KUBECTL = "#!/bin/sh\ncat <<'END'\n{answer}\nEND\n"


@pytest.mark.parametrize(
    "status, generation",
    [
        pytest.param(None, 1, id="no status"),
        pytest.param({"observedGeneration": -1}, 1, id="the default status of the CRD"),
        pytest.param(
            {"observedGeneration": 1, "stages": [{"digest": "a"}]}, 2, id="edited after the status was written"
        ),
        pytest.param({"observedGeneration": 1, "stages": []}, 1, id="invalid since it was created"),
        pytest.param(
            {"observedGeneration": 2, "stages": [{"digest": "a"}], "conditions": [{"reason": "InvalidSpec"}]},
            2,
            id="invalid after an edit",
        ),
    ],
)
def test_the_clean_up_lists_nothing_while_the_stages_of_a_chain_are_unknown(
    tmp_path: Path, status: dict[str, Any] | None, generation: int
) -> None:
    """With a fake kubectl, because the real states last only for a moment."""
    (block,) = (parameter.values[0] for parameter in of(Scene.S3, "docs/operations.md"))
    chain = {"metadata": {"name": "new", "generation": generation}} | ({"status": status} if status else {})
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL.format(answer=json.dumps({"items": [chain]})))
    kubectl.chmod(0o755)
    store = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}  # never used

    done = subprocess.run(
        [sys.executable, "-c", block.text],
        env=environment(tmp_path, tmp_path, **store),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "stages of these chains are not known: new\n"


# An API server.


@dataclass
class Chain:
    """The chain sst2-femto in its own namespace, which is the namespace of the kubeconfig's context."""

    cluster: ControlPlane
    namespace: str
    folder: Path
    variables: dict[str, str]
    digest: str

    def write_status(self, *, failed: bool) -> None:
        """Write the status that the operator would write. Without a node, no stage runs."""
        chain = parse_chain(self.cluster.get("distillationchain", NAME, "-n", self.namespace))
        plan = build_plan(chain)
        entries = [committed_entry(stage, a_commit(stage), job="gone", attempt=1) for stage in plan.stages]
        if failed:
            fault = {"message": "labels differ", "failure_class": FailureClass.LABEL_MISMATCH, "job": self._make_job()}
            last = {"name": plan.stages[-1].name, "digest": plan.stages[-1].digest, "phase": "Failed", "attempt": 1}
            entries[-1] = StageStatus.model_validate(last | fault)
        self.patch_status(build_status(plan, entries).to_document())

    def patch_status(self, status: dict[str, Any]) -> None:
        self.cluster.kubectl(
            *("-n", self.namespace, "patch", "distillationchain", NAME, "--subresource=status", "--type=merge"),
            *("-p", json.dumps({"status": status})),
        )

    def _make_job(self) -> str:
        chain = self.cluster.get("distillationchain", NAME, "-n", self.namespace)
        owner = {key: chain[key] for key in ("apiVersion", "kind")} | {"name": NAME, "controller": True}
        pod = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "x"}]}
        job = f"{NAME}-last-0123456789"
        metadata = {"name": job, "namespace": self.namespace}
        metadata |= {"ownerReferences": [owner | {"uid": chain["metadata"]["uid"]}]}
        spec = {"suspend": True, "template": {"spec": pod}}
        self.cluster.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})
        moment = "2026-01-01T12:00:00Z"
        over = [
            {"type": kind, "status": "True", "reason": "PodFailurePolicy", "lastTransitionTime": moment}
            for kind in ("FailureTarget", "Failed")
        ]
        patch = json.dumps({"status": {"startTime": moment, "conditions": over}})
        self.cluster.kubectl(
            "-n", self.namespace, "patch", "job", job, "--subresource=status", "--type=merge", "-p", patch
        )
        return job


@pytest.fixture(scope="module")
def with_crd(control_plane: ControlPlane) -> ControlPlane:
    """The control plane of the session, with the CRD and the namespace of the manifests."""
    _install_crd(control_plane)
    if control_plane.kubectl("get", "namespace", "team-a", check=False).returncode:
        control_plane.create_namespace("team-a")
    return control_plane


@pytest.fixture
def chain(with_crd: ControlPlane, namespace: str, tmp_path: Path) -> Chain:
    control_plane = with_crd
    document = a_document(NAME)
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(document))
    control_plane.kubectl("-n", namespace, "apply", "-f", str(tmp_path / "chain.yaml"))
    variables = environment(
        tmp_path, control_plane.binaries, KUBECONFIG=str(_kubeconfig(control_plane, namespace, tmp_path))
    )
    digest = build_plan(parse_chain(document)).stages[0].digest
    return Chain(control_plane, namespace, tmp_path, variables, digest)


def _install_crd(control_plane: ControlPlane) -> None:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "crds"))
    control_plane.wait_until_served("distillationchains")


def _kubeconfig(control_plane: ControlPlane, namespace: str, folder: Path) -> Path:
    document = json.loads(control_plane.kubeconfig.read_text())
    document["contexts"][0]["context"]["namespace"] = namespace
    path = folder / "kubeconfig"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.cluster
@pytest.mark.parametrize("block", of(Scene.CHAIN))
@on_one_worker
def test_with_a_chain(block: Block, chain: Chain) -> None:
    later = threading.Timer(2, lambda: chain.write_status(failed=False))
    if "condition=Succeeded" in block.text:
        later.start()
    else:
        chain.write_status(failed=True)

    done = run_block(block, chain.folder, variables=chain.variables)

    later.cancel()
    assert re.search(rf"{NAME}|retrying stage tiny", done.stdout)
    if "status.phase" in block.text:
        assert f"{NAME}: tiny: labels differ" in done.stdout
    if "retry" in block.text:
        (changed,) = chain.cluster.get("dchain", "-n", chain.namespace)["items"]
        assert changed["metadata"]["annotations"]["distillchain.io/retry"].startswith("tiny@")


@pytest.fixture(scope="module")
def empty_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Not the cluster of the session, because these blocks install and remove objects of the whole cluster."""
    with ControlPlane(tmp_path_factory.mktemp("empty")) as running:
        yield running


@pytest.mark.cluster
@on_one_worker
def test_install_upgrade_and_uninstall(empty_cluster: ControlPlane, tmp_path: Path) -> None:
    checkout = a_checkout(tmp_path / "checkout")
    (checkout / "chain.yaml").write_text(yaml.safe_dump(a_document(NAME)))
    (checkout / "s3.env").write_text("AWS_ACCESS_KEY_ID=only-for-tests\nAWS_SECRET_ACCESS_KEY=only-for-tests\n")
    variables = environment(tmp_path, ensure_binaries(), KUBECONFIG=str(empty_cluster.kubeconfig))
    by_helm, rest = [], []
    for block in (parameter.values[0] for parameter in of(Scene.INSTALL)):
        (by_helm if block.text.startswith("helm") else rest).append(block)

    outputs = {block.text.split()[1]: run_block(block, checkout, variables=variables).stdout for block in by_helm}
    crd_exists = empty_cluster.kubectl("get", "crd", "distillationchains.distillchain.io", check=False).returncode
    # Start again as on an empty cluster: kustomize creates all objects.
    empty_cluster.kubectl("delete", "namespace", "distillchain-system")
    for block in rest:
        empty_cluster.kubectl("delete", "crd", "distillationchains.distillchain.io", "--ignore-not-found")
        if "delete crd" in block.text:
            _install_crd(empty_cluster)
        run_block(block, checkout, variables=variables)

    assert list(outputs) == ["install", "upgrade", "uninstall"]
    assert "distillchain" in outputs["install"]
    assert f"{NAME} created" in outputs["install"]
    assert crd_exists == 0, "the CRD stays after uninstall"
    assert empty_cluster.get("roles", "-n", "team-a")["items"]


def _whole(document: dict[str, Any]) -> dict[str, Any]:
    """A block with `spec:` alone shows fields of a chain; the rest is that of any valid chain."""
    if set(document) != {"spec"}:
        return document
    chain = a_document(NAME)
    chain["metadata"]["namespace"] = "team-a"
    return chain | {"spec": overlay(chain["spec"], document["spec"])}


@pytest.mark.cluster
@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in blocks("yaml") if b.key not in VALUES])
@on_one_worker
def test_a_manifest_is_accepted_by_the_api_server(block: Block, with_crd: ControlPlane) -> None:
    documents = [_whole(document) for document in yaml.safe_load_all(block.text)]
    with_crd.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
        input=yaml.safe_dump_all(documents),
    )

    for document in documents:
        if document["kind"] == "DistillationChain":
            parse_chain(document)


@pytest.mark.cluster
@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in blocks("yaml") if b.key in VALUES])
def test_values_fit_the_chart(block: Block, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(block.text)

    rendered = subprocess.run(
        [str(ensure_binaries() / "helm"), "template", str(CHART), "--values", str(tmp_path / "values.yaml")],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert rendered.returncode == 0, rendered.stderr
    for value in re.findall(
        r"(?:serviceAccountName|region|endpointUrl|gke-accelerator|replicas|whenUnsatisfiable): \"?([\w./:-]+)",
        block.text,
    ):
        assert value in rendered.stdout, f"{value} of {block} has no effect"
