"""`distillchain report`: on a chain file, on a chain of the cluster, and what it says when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chain_builders import a_document
from cli.parts import distillchain, distillchain_here, example_in_help, write_chain
from cluster.controlplane import ControlPlane
from cluster.s3 import S3Server
from cluster.waiting import wait_until
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_cli.documents import read_chain
from distillchain_cli.errors import RunFailed
from distillchain_cli.report_command import ReportFormat, report_text
from distillchain_cli.targets import FetchChain
from report import stores
from report.stores import Relay, write_relay

pytestmark = pytest.mark.slow


@pytest.fixture
def chain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """chain.yaml of two stages, of which the store holds both."""
    path = write_chain(tmp_path)
    plan = build_plan(read_chain(str(path)))
    write_store(tmp_path / "store", plan, committed=2, monkeypatch=monkeypatch)
    return path


def write_store(folder: Path, plan: Plan, *, committed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stages of a plan, committed under their own digests."""
    digests = {stage.name: stage.digest for stage in plan.stages}
    monkeypatch.setattr(stores, "digest_of", lambda name: digests.get(name, "0" * 64))
    names = [stage.name for stage in plan.stages][:committed]
    chain = f"{plan.chain.metadata.namespace}/{plan.chain.name}"
    write_relay(folder, Relay(names=names, accuracies=[0.93, 0.9, 0.85][: committed + 1], chain=chain))


def test_the_example_of_its_help_writes_a_page(chain_file: Path):
    done = distillchain(*example_in_help("report", cwd=chain_file.parent), cwd=chain_file.parent)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "report: report.html\n")
    page = (chain_file.parent / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "tiny keeps 91.4 %" in page


@pytest.mark.parametrize(
    "form, want", [("md", "# Distillation report: default/relay\n"), ("html", "<!DOCTYPE html>\n")]
)
def test_it_goes_to_stdout_in_the_form_that_is_asked_for(chain_file: Path, form: str, want: str):
    done = distillchain_here("report", "chain.yaml", "-o", form, cwd=chain_file.parent)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(want)


def test_an_edited_chain_is_half_done(chain_file: Path):
    edit = ("--set", "spec.stages[tiny].training.epochs=9")

    done = distillchain_here("report", "chain.yaml", "-o", "json", *edit, cwd=chain_file.parent)

    report = json.loads(done.stdout)
    assert report["outcome"] == "Unfinished"
    assert [stage["standing"] for stage in report["stages"]] == ["Committed", "Pending"]


def test_a_committed_stage_is_held_to_the_gate_of_the_chain_file(chain_file: Path):
    edit = ("--set", "spec.stages[tiny].gate={minMetric: 0.99}")

    done = distillchain("report", "chain.yaml", "-o", "json", *edit, cwd=chain_file.parent)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outcome"] == "Failed"
    assert [stage.get("failureClass") for stage in report["stages"]] == [None, "GateNotMet"]
    want = (
        "Failed at tiny (GateNotMet) with 2 of 2 stages committed: stage tiny: accuracy 0.8498 is under "
        "spec.stages[1].gate.minMetric 0.99; train it better or lower the gate: its checkpoint is "
        f"file://{chain_file.parent}/store/stages/{report['stages'][1]['digest']}/attempts/a1. tiny keeps 91.4 %"
    )
    assert report["verdict"].startswith(want)


def test_an_empty_store_makes_a_report_too(tmp_path: Path):
    write_chain(tmp_path)

    done = distillchain_here("report", "chain.yaml", "-o", "json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    want = "Not finished: 0 of 2 stages committed; mini: not begun, or nothing saved yet."
    assert json.loads(done.stdout)["verdict"] == want


@pytest.mark.parametrize(
    "arguments, want",
    [
        pytest.param(
            ["nowhere.yaml"],
            "nowhere.yaml: there is no such file; expected a chain file, or the name of a chain on the cluster",
            id="no file",
        ),
        pytest.param(
            ["chain.yaml", "--to", "no/such/folder.html"],
            "--to: no/such/folder.html cannot be written (No such file or directory); name another file",
            id="no folder",
        ),
        pytest.param(
            ["relay", "--set", "spec.suspend=true"],
            "--set: expected with a chain file only; a chain on the cluster is taken as it is there",
            id="an edit of a chain on the cluster",
        ),
    ],
)
def test_what_cannot_be_used_is_said(chain_file: Path, arguments: list[str], want: str):
    done = distillchain_here("report", *arguments, cwd=chain_file.parent)

    assert (done.returncode, done.stderr) == (2, want + "\n")


def fetched(storage: str) -> FetchChain:
    """A chain of the cluster that has succeeded."""
    document = a_document("relay", storage={"uri": storage})
    stages = build_plan(parse_chain(document)).stages
    entries = [StageStatus(name=stage.name, digest=stage.digest, phase="Committed") for stage in stages]
    status = ChainStatus(phase="Succeeded", stages=entries).to_document()
    return lambda _name: {**document, "status": status}


def test_a_volume_that_is_not_mounted_here_is_no_failed_chain(tmp_path: Path):
    with pytest.raises(RunFailed) as failure:
        report_text("relay", ReportFormat.JSON, storage=None, overrides=(), fetch_chain=fetched("file:///volume/a"))

    want = "file:///volume/a is not on this machine; mount that volume here, or name where its files are with --storage"
    assert str(failure.value) == want


def test_a_mistyped_storage_is_no_chain_that_has_not_begun(chain_file: Path):
    done = distillchain("report", "chain.yaml", "--storage", "file://./stroe", cwd=chain_file.parent)

    assert done.returncode == 1
    assert done.stderr.startswith(f"file://{chain_file.parent}/stroe is not on this machine; ")


def test_a_store_that_has_nothing_of_a_chain_that_succeeded_is_another_one(tmp_path: Path):
    (tmp_path / "other").mkdir()
    storage = f"file://{tmp_path}/other"

    with pytest.raises(RunFailed) as failure:
        report_text("relay", ReportFormat.JSON, storage=storage, overrides=(), fetch_chain=fetched("s3://models/a"))

    assert str(failure.value) == (
        f"{storage} holds none of the 2 stages that the chain's status calls committed: it is another store, or was "
        "emptied; name the right one with --storage"
    )


def test_plan_would_fail_at_a_manifest_of_another_release(chain_file: Path):
    for path in chain_file.parent.glob("store/stages/*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"contract": 2}))

    done = distillchain("plan", "chain.yaml", "-o", "json", cwd=chain_file.parent)

    first = json.loads(done.stdout)["stages"][0]
    assert first["action"] == "fail"
    assert "was made by another release (its contract is 2, this release reads 1)" in first["why"]


@pytest.mark.cluster
@pytest.mark.xdist_group("cli")
def test_a_failed_chain_of_the_cluster_is_reported_from_its_bucket(
    control_plane: ControlPlane,
    namespace: str,
    bucket: str,
    s3: S3Server,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    control_plane.kubectl("apply", "-f", str(repository / "crds"))
    wait_until(
        "the CRD",
        lambda: control_plane.kubectl("get", "dchain", "-A", check=False).returncode == 0,
        deadline_s=30,
    )
    storage = {"uri": f"{bucket}/relay", "endpointUrl": s3.endpoint, "secretRef": {"name": "s3-credentials"}}
    document = a_document("relay", storage=storage)
    control_plane.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(document))
    chain = parse_chain(control_plane.get("dchain", "relay", "-n", namespace))
    write_store(tmp_path / "store", build_plan(chain), committed=1, monkeypatch=monkeypatch)
    upload(tmp_path / "store", s3, bucket)
    patch_status(control_plane, chain, failed="tiny")
    kubeconfig = {"KUBECONFIG": str(control_plane.kubeconfig)}
    mine = {name: value for name, value in s3.environment().items() if name != "AWS_ENDPOINT_URL_S3"}

    done = distillchain("report", "relay", "-n", namespace, "-o", "json", cwd=tmp_path, **kubeconfig, **mine)
    denied = distillchain(
        "report",
        "relay",
        "-n",
        namespace,
        cwd=tmp_path,
        **kubeconfig,
        **{**mine, "AWS_SECRET_ACCESS_KEY": "wrong-secret"},
    )

    planned = distillchain("plan", "relay", "-n", namespace, "-o", "json", cwd=tmp_path, **kubeconfig, **mine)

    assert [stage["action"] for stage in json.loads(planned.stdout)["stages"]] == ["reuse", "train"]
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["chain"] == f"{namespace}/relay"
    want = (
        "Failed at tiny (LabelMismatch) with 1 of 2 stages committed: its labels are others. mini so far keeps 96.8 %"
    )
    assert report["verdict"].startswith(want)
    assert [stage["run"]["reused"] for stage in report["stages"] if "run" in stage] == [True]
    assert denied.returncode == 1
    assert "SignatureDoesNotMatch" in denied.stderr
    assert "wrong-secret" not in denied.stderr


def upload(folder: Path, s3: S3Server, bucket: str) -> None:
    client = s3.client()
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"relay/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=path.read_bytes())


def patch_status(control_plane: ControlPlane, chain: DistillationChain, *, failed: str) -> None:
    """As the operator would write it: the stage before was found committed."""
    entries: list[StageStatus] = []
    for stage in build_plan(chain).stages:
        committed: dict[str, Any] = {"phase": "Committed", "reused": True}
        ended: dict[str, Any] = {
            "phase": "Failed",
            "message": "its labels are others",
            "failure_class": FailureClass.LABEL_MISMATCH,
        }
        more = ended if stage.name == failed else committed
        entries.append(StageStatus(name=stage.name, digest=stage.digest, **more))
    status = ChainStatus(phase="Failed", stages=entries).to_document()
    patch = json.dumps({"status": status})
    namespace = chain.metadata.namespace
    control_plane.kubectl(
        "-n", namespace, "patch", "dchain", chain.name, "--subresource=status", "--type=merge", "-p", patch
    )
