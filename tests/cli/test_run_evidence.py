"""`distillchain run` of a chain with `spec.evidence`: the real trainer, controls, unlabelled text, and the verdict."""

from __future__ import annotations

import html
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.parts import distillchain
from distillchain_api.layout import evidence_key
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.evidence import EvidenceDocument
from distillchain_api.wire.manifest import Manifest

pytestmark = [pytest.mark.models, pytest.mark.xdist_group("cli-models")]

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # other tests run on the same two cores
STUDENTS = ["small", "small-s2", "small-direct-s1", "small-direct-s2", "small-from-root-s1", "small-from-root-s2"]


def write_relay(root: Path, **spec: Any) -> None:
    """root/chain.yaml: a fine-tuned BERT, mid and small with new weights, some unlabelled text, and two controls."""
    from trainer.parts import SMALL_BERT, a_chain_document

    def student(hidden_size: int) -> dict[str, Any]:
        config = {**SMALL_BERT, "hidden_size": hidden_size}
        return {"architecture": {"modelType": "bert", "config": config}, "tokenizer": "file://./start"}

    document = a_chain_document(
        root,
        teacher={"model": "file://./start", "fineTune": {"epochs": 4}},
        stages=[{"name": "mid", "student": student(16)}, {"name": "small", "student": student(8)}],
        splits={"test": "test.tsv"},
        storage={"uri": "file://./store"},
    )
    document["spec"]["task"]["dataset"]["uri"] = "file://./data"
    document["spec"]["task"]["transfer"] = {"uri": "file://./data", "files": ["more.txt"]}
    document["spec"]["template"]["training"]["epochs"] = 8
    document["spec"] |= {"evidence": {"seeds": 2}, **spec}
    (root / "chain.yaml").write_text(yaml.safe_dump(document))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a chain that was run, and the finished command."""
    from trainer.parts import save_bert, write_data

    root = tmp_path_factory.mktemp("evidence")
    write_data(root / "data", train=120, validation=60, test=40)
    save_bert(root / "start", labels=None)
    rows = (root / "data" / "train.tsv").read_text().splitlines()[1:51]
    (root / "data" / "more.txt").write_text("".join(f"{row.rpartition('	')[0]} again\n" for row in rows))
    write_relay(root)
    done = distillchain("run", "chain.yaml", cwd=root, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return root, done


def manifests(root: Path) -> dict[str, Manifest]:
    found = [Manifest.parse(path.read_text()) for path in root.glob("store/stages/*/manifest.json")]
    return {manifest.stage: manifest for manifest in found}


def test_a_run_ends_with_the_verdict(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, done = ran
    committed = manifests(root)
    assert sorted(committed) == sorted(["teacher", "mid", *STUDENTS])

    (path,) = root.glob(f"store/stages/{committed['small'].digest}/evidence/*.json")
    document = EvidenceDocument.parse(path.read_text())

    assert path == root / "store" / evidence_key(committed["small"].digest, document.digest)
    assert [student.name for student in document.students] == STUDENTS
    assert (document.last.stage, document.last.rows, document.missing) == ("small", 60, [])
    assert document.last.values == [accuracy(committed[name]) for name in STUDENTS[:2]]
    direct, from_root = document.last.controls
    assert (direct.control, direct.values) == ("Direct", [accuracy(committed[name]) for name in STUDENTS[2:4]])
    assert (from_root.control, from_root.values) == ("FromRoot", [accuracy(committed[name]) for name in STUDENTS[4:]])
    lines = done.stdout.splitlines()
    assert f"{document.last.outcome}: {document.last.sentence}" in lines
    start = next(number for number, line in enumerate(lines) if line.startswith("EVIDENCE"))
    head, own, *controls = (line.split() for line in lines[start : start + 4])
    assert (head[-1], own) == ("DETECTABLE", ["small", f"{document.last.metric:.4f}", *"----"])
    for control, cells in zip(document.last.controls, controls, strict=True):
        shown = f"{control.metric:.4f} {control.difference:+.4f} {control.low:+.4f} to {control.high:+.4f}"
        assert cells == [control.control, *shown.split(), f"{control.p_value:.4f}", f"{control.detectable:.4f}"]
    assert f"all numbers: file://{path}" in done.stdout
    assert f"stage evidence: {document.last.outcome}: " in done.stderr

    # Both the trainer of the verdict and the command show it on the report.
    assert document.last.sentence in html.unescape((path.parents[1] / "report.html").read_text())
    written = distillchain("report", "chain.yaml", "-o", "json", cwd=root)
    assert json.loads(written.stdout)["evidence"]["digest"] == document.digest


def accuracy(manifest: Manifest) -> float:
    return manifest.student.metrics.validation["accuracy"]


def test_all_students_train_for_as_many_steps_and_direct_asks_no_teacher(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
):
    committed = manifests(ran[0])
    # 120 labelled rows and 50 unlabelled ones in batches of 16, eight times.
    assert {name: committed[name].run.steps for name in STUDENTS} == dict.fromkeys(STUDENTS, 88)
    assert [name for name in STUDENTS if committed[name].teacher is None] == ["small-direct-s1", "small-direct-s2"]
    assert committed["small-direct-s1"].data["transfer"].rows == 50
    assert committed["small-from-root-s1"].teacher is not None
    assert committed["small-from-root-s1"].teacher.digest == committed["teacher"].digest


def test_all_students_of_one_teacher_share_its_stored_answers(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, _ = ran
    committed = manifests(root)
    reused = {name: committed[name].run.logits_reused for name in STUDENTS if committed[name].teacher is not None}
    # mid has asked the root, and small has asked mid.
    assert reused == {"small": False, "small-s2": True, "small-from-root-s1": True, "small-from-root-s2": True}
    assert len(list((root / "store/logits").iterdir())) == 2


def test_a_second_run_trains_nothing_and_compares_again(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, _ = ran
    before = {path: path.read_bytes() for path in root.glob("store/stages/*/manifest.json")}

    done = distillchain("run", "chain.yaml", "-o", "json", cwd=root)

    status = ChainStatus.parse(done.stdout)
    assert (done.returncode, status.phase, status.stage) == (0, "Succeeded", "3/3")
    assert [entry.reused for entry in status.evidence] == [True] * 5 + [False]
    assert status.result is not None
    assert status.result.evidence is not None
    assert next(each.status for each in status.conditions if each.type == "EvidenceReady") == "True"
    assert {path: path.read_bytes() for path in root.glob("store/stages/*/manifest.json")} == before


def test_a_plan_shows_controls_and_what_more_seeds_would_train(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, _ = ran

    def planned(*more: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(distillchain("plan", "chain.yaml", "-o", "json", *more, cwd=root).stdout)
        return found

    assert [stage["action"] for stage in planned()["stages"]] == ["reuse"] * 3
    beside = planned()["evidence"]
    assert [each["action"] for each in beside] == ["reuse"] * 5 + ["compare"]
    assert all(each["committed"] for each in beside)
    more = planned("--set", "spec.evidence.seeds=3")["evidence"]
    assert [each["name"] for each in more if each["action"] == "train"] == [
        "small-s3",
        "small-direct-s3",
        "small-from-root-s3",
    ]


def test_a_control_that_fails_is_left_out_and_the_chain_succeeds(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, _ = ran
    damaged = root / "store/stages" / manifests(root)["small-direct-s1"].digest / "manifest.json"
    content = damaged.read_text()
    damaged.write_text("no manifest")
    try:
        done = distillchain("run", "chain.yaml", "-o", "json", cwd=root)
    finally:
        damaged.write_text(content)

    status = ChainStatus.parse(done.stdout)
    assert (done.returncode, status.phase) == (0, "Succeeded")
    ready = next(each for each in status.conditions if each.type == "EvidenceReady")
    assert (ready.status, ready.reason) == ("False", "Failed")
    assert f"evidence: {ready.message}" in done.stderr
    assert ready.message.startswith("small-direct-s1 failed: ")
    assert status.result is not None
    assert status.result.evidence is not None
    assert [control.control for control in status.result.evidence.controls] == ["FromRoot"]
    assert status.result.evidence.missing == ["small-direct-s1 failed"]
