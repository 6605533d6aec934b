"""`distillchain report`: on a chain file, on a chain of the cluster, and its error messages."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from chain_builders import a_document
from cli.committed import write_store
from cli.parts import distillchain, distillchain_here, example_in_help, write_chain
from cluster.controlplane import ControlPlane
from cluster.s3 import S3Server
from cluster.waiting import wait_until
from distillchain_api.failures import FailureClass
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import DistillationChain, parse_chain
from distillchain_api.resource.status import ChainStatus, StageStatus
from distillchain_cli.arguments.chain_files import read_chain
from distillchain_cli.arguments.targets import FetchChain
from distillchain_cli.commands.report import ReportFormat, report_text, write_report
from distillchain_cli.errors import BadInput, RunFailed
from report.controlled import commit_controlled, weigh_students

pytestmark = pytest.mark.slow


@pytest.fixture
def chain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """chain.yaml with two stages, both committed in its store."""
    path = write_chain(tmp_path)
    plan = build_plan(read_chain(str(path)))
    write_store(tmp_path / "store", plan, committed=2, monkeypatch=monkeypatch)
    return path


def test_the_example_of_the_help_writes_a_page(chain_file: Path):
    done = distillchain(*example_in_help("report", cwd=chain_file.parent), cwd=chain_file.parent)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "report: report.html\n")
    page = (chain_file.parent / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "tiny keeps 91.4 %" in page


@pytest.mark.parametrize(
    "form, want", [("md", "# Distillation report: default/relay\n"), ("html", "<!DOCTYPE html>\n")]
)
def test_the_report_is_printed_to_stdout_in_the_chosen_format(chain_file: Path, form: str, want: str):
    done = distillchain_here("report", "chain.yaml", "-o", form, cwd=chain_file.parent)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(want)


def test_the_verdict_is_that_of_the_chain_file(tmp_path: Path):
    documents = [
        a_document(stages=["mini", "tiny"], evidence={"smallestGain": gain}, storage={"uri": f"file://{tmp_path}"})
        for gain in (0.01, 0.2)
    ]
    plan, other = (build_plan(parse_chain(document)) for document in documents)
    commit_controlled(tmp_path, plan, chain=0.90, from_root=0.86, direct=0.80)
    weigh_students(tmp_path, other, made_at="2026-01-01T14:00:00Z")
    (tmp_path / "chain.yaml").write_text(json.dumps(documents[0]))

    text = report_text(
        str(tmp_path / "chain.yaml"),
        ReportFormat.JSON,
        storage=None,
        overrides=(),
        fetch_chain=fetched("file:///not-used"),
    )

    assert json.loads(text)["evidence"]["digest"] == plan.evidence[-1].digest


def test_an_edited_chain_is_unfinished(chain_file: Path):
    edit = ("--set", "spec.stages[tiny].training.epochs=9")

    done = distillchain_here("report", "chain.yaml", "-o", "json", *edit, cwd=chain_file.parent)

    report = json.loads(done.stdout)
    assert report["outcome"] == "Unfinished"
    assert [stage["phase"] for stage in report["stages"]] == ["Committed", "Pending"]


def test_a_committed_stage_fails_if_it_misses_the_gate_of_the_chain_file(chain_file: Path):
    edit = ("--set", "spec.stages[tiny].gate={minMetric: 0.99}")

    done = distillchain("report", "chain.yaml", "-o", "json", *edit, cwd=chain_file.parent)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outcome"] == "Failed"
    assert [stage.get("failureClass") for stage in report["stages"]] == [None, "GateNotMet"]
    want = (
        "Failed at tiny (GateNotMet) with 2 of 2 stages committed: stage tiny: accuracy 0.8498 is below "
        "spec.stages[1].gate.minMetric 0.99; train it better or lower the gate: its checkpoint is "
        f"file://{chain_file.parent}/store/stages/{report['stages'][1]['digest']}/attempts/a1/checkpoint. tiny keeps 91.4 %"
    )
    assert report["verdict"].startswith(want)


def test_an_empty_store_gives_a_report_too(tmp_path: Path):
    write_chain(tmp_path)

    done = distillchain_here("report", "chain.yaml", "-o", "json", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    want = "Not finished: 0 of 2 stages committed; mini: not started, or nothing saved yet."
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
            ["chain.yaml", "--to", "./chain.yaml"],
            "--to: ./chain.yaml is the chain file, which would be lost; name another file",
            id="the chain file",
        ),
        pytest.param(
            ["relay", "--set", "spec.suspend=true"],
            "--set: expected with a chain file only; a chain on the cluster is used as it is there",
            id="an edit of a chain on the cluster",
        ),
        pytest.param(
            ["relay", "--storage", "gs://models"],
            '--storage: got "gs://models", expected s3://bucket/prefix or file:///absolute/path; gs:// cannot be used here',
            id="another kind of store for a chain on the cluster",
        ),
    ],
)
def test_arguments_that_cannot_be_used_are_explained(chain_file: Path, arguments: list[str], want: str):
    done = distillchain_here("report", *arguments, cwd=chain_file.parent)

    assert (done.returncode, done.stderr) == (2, want + "\n")


def test_a_report_that_does_not_fit_leaves_no_part_of_it(tmp_path: Path):
    page = tmp_path / "r.html"
    page.write_text("<html>old</html>")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    # Of files, not of the disk; the error comes at the same place.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            BadInput, match=r"^--to: .*r\.html cannot be written \(File too large\); name another file$"
        ):
            write_report("x" * 100_000, str(page))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not page.exists()


def fetched(storage: str) -> FetchChain:
    """Fetches a chain of the cluster that has succeeded."""
    document = a_document("relay", storage={"uri": storage})
    stages = build_plan(parse_chain(document)).stages
    entries = [StageStatus(name=stage.name, digest=stage.digest, phase="Committed") for stage in stages]
    status = ChainStatus(phase="Succeeded", stages=entries).to_document()
    return lambda _name: {**document, "status": status}


def test_a_volume_that_is_not_mounted_here_is_an_error(tmp_path: Path):
    with pytest.raises(RunFailed) as failure:
        report_text("relay", ReportFormat.JSON, storage=None, overrides=(), fetch_chain=fetched("file:///volume/a"))

    want = (
        "file:///volume/a does not exist on this machine; mount that volume here, or use --storage to name the folder"
    )
    assert str(failure.value) == want


def test_a_storage_folder_that_does_not_exist_is_an_error(chain_file: Path):
    done = distillchain("report", "chain.yaml", "--storage", "file://./stroe", cwd=chain_file.parent)

    assert done.returncode == 1
    assert done.stderr.startswith(f"file://{chain_file.parent}/stroe does not exist on this machine; ")


def test_a_store_without_any_committed_stage_of_the_status_is_an_error(tmp_path: Path):
    (tmp_path / "other").mkdir()
    storage = f"file://{tmp_path}/other"

    with pytest.raises(RunFailed) as failure:
        report_text("relay", ReportFormat.JSON, storage=storage, overrides=(), fetch_chain=fetched("s3://models/a"))

    assert str(failure.value) == (
        f"{storage} has none of the 2 stages that the chain's status lists as committed: it is another store, or it was "
        "emptied; use --storage to name the right one"
    )


def test_a_plan_fails_at_a_manifest_of_another_release(chain_file: Path):
    for path in chain_file.parent.glob("store/stages/*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"contract": 99}))

    done = distillchain("plan", "chain.yaml", "-o", "json", cwd=chain_file.parent)

    first = json.loads(done.stdout)["stages"][0]
    assert first["action"] == "fail"
    assert "its contract is 99" in first["reason"]


@pytest.mark.cluster
@pytest.mark.xdist_group("cli")
def test_commands_read_a_failed_chain_of_the_cluster_from_its_bucket(
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
    credentials = {name: value for name, value in s3.environment().items() if name != "AWS_ENDPOINT_URL_S3"}

    def ask(*arguments: str, **variables: str) -> CompletedProcess[str]:
        environment = {**kubeconfig, **credentials, **variables}
        return distillchain(*arguments, "relay", "-n", namespace, "-o", "json", cwd=tmp_path, **environment)

    def here(*arguments: str) -> str:
        done = distillchain_here(*arguments, "-n", namespace, cwd=tmp_path, **kubeconfig, **credentials)
        assert done.returncode == 0, done.stderr
        return done.stdout

    done, planned, advised = ask("report"), ask("plan"), ask("advise")
    denied = ask("report", AWS_SECRET_ACCESS_KEY="wrong-secret")

    assert [stage["action"] for stage in json.loads(planned.stdout)["stages"]] == ["reuse", "train"]
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["chain"] == f"{namespace}/relay"
    want = "Failed at tiny (LabelMismatch) with 1 of 2 stages committed: its labels differ. mini so far keeps 96.8 %"
    assert report["verdict"].startswith(want)
    assert [stage["run"]["reused"] for stage in report["stages"] if "run" in stage] == [True]
    assert advised.returncode == 0, advised.stderr
    advice = json.loads(advised.stdout)
    assert [(step["teacher"], step["student"]) for step in advice["steps"]] == [("teacher", "mini")]
    compared = json.loads(here("compare", "relay:mini", "relay", "-o", "json"))
    assert [(model["chain"], model["stage"]) for model in compared["models"]] == [(f"{namespace}/relay", "mini")] * 2
    assert json.loads(here("gc", "relay", "-o", "json"))["storage"] == storage["uri"]
    here("download", "relay", "--stage", "mini", "--to", "mini")
    assert (tmp_path / "mini").is_dir()
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
    """Writes the status of a chain whose stage `failed` has failed and whose others were reused."""
    entries: list[StageStatus] = []
    for stage in build_plan(chain).stages:
        committed: dict[str, Any] = {"phase": "Committed", "reused": True}
        ended: dict[str, Any] = {
            "phase": "Failed",
            "message": "its labels differ",
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
