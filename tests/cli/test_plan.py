"""`distillchain plan`: what a run would do, from the store alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.committed import write_store
from cli.parts import distillchain, distillchain_here, plant_manifest, write_chain
from distillchain_api.graph import build_plan
from distillchain_api.layout import evidence_key, export_record_key, manifest_key, pass_manifest_key
from distillchain_cli.arguments.chain_files import read_chain
from report.stores import write_pass

pytestmark = pytest.mark.slow


def test_a_plan_names_what_would_be_trained_and_changes_nothing(tmp_path: Path):
    write_chain(tmp_path)

    done = distillchain("plan", "chain.yaml", cwd=tmp_path)

    mini, tiny = build_plan(read_chain(str(tmp_path / "chain.yaml"))).stages
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "STAGE  DIGEST        TEACHER  COMMITTED  ACTION  REASON",
        f"mini   {mini.digest[:12]}  teacher  no         train   not in the store",
        f"tiny   {tiny.digest[:12]}  mini     no         train   not in the store; after mini",
    ]
    assert done.stderr == (
        f"relay in file://{tmp_path}/store: a run would train mini, tiny; this command changed nothing\n"
    )
    assert not (tmp_path / "store").exists()


def test_a_plan_says_why_a_run_would_fail(tmp_path: Path):
    write_chain(tmp_path)
    path = plant_manifest(tmp_path, "{}")

    done = distillchain_here("plan", "chain.yaml", "-o", "json", cwd=tmp_path)

    mini = json.loads(done.stdout)["stages"][0]
    assert (mini["action"], mini["committed"]) == ("fail", False)
    assert mini["reason"].startswith(f"file://{path} cannot be read")


@pytest.mark.parametrize("command", ["plan", pytest.param("run", marks=pytest.mark.models)])
def test_a_store_that_cannot_be_used_is_explained_in_a_sentence(tmp_path: Path, command: str):
    write_chain(tmp_path)
    (tmp_path / "store").write_text("a file, not a folder")

    done = distillchain_here(command, "chain.yaml", cwd=tmp_path)

    assert done.returncode == 1
    assert "spec.storage.uri: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_ignores_a_folder_with_the_name_of_a_chain(tmp_path: Path):
    """Chains and folders have similar names; a folder has to be spelt as a path."""
    (tmp_path / "relay").mkdir()
    write_chain(tmp_path / "relay")

    assert distillchain_here("plan", "./relay", cwd=tmp_path).returncode == 0
    assert "kubeconfig" in distillchain_here("plan", "relay", cwd=tmp_path, HOME=str(tmp_path)).stderr


def test_the_pass_of_a_teacher_is_a_line_of_its_own(tmp_path: Path):
    path = write_chain(tmp_path, stages=["mini"])
    path.write_text(path.read_text().replace("- name: mini\n", "- name: mini\n    teacherPass: {}\n"))

    done = distillchain_here("plan", "chain.yaml", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    cells = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[4]) for row in cells] == [("mini-pass", "compute"), ("mini", "train")]
    assert "a run would compute mini-pass and train mini;" in done.stderr


def test_a_pass_that_only_committed_stages_need_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_chain(tmp_path, stages=["mini"])
    path.write_text(path.read_text().replace("- name: mini\n", "- name: mini\n    teacherPass: {}\n"))
    write_store(tmp_path / "store", build_plan(read_chain(str(path))), committed=1, monkeypatch=monkeypatch)

    done = distillchain_here("plan", "chain.yaml", cwd=tmp_path)

    cells = [line.split(maxsplit=5) for line in done.stdout.splitlines()[1:]]
    assert [(row[0], row[4], row[5]) for row in cells] == [
        ("mini-pass", "skip", "not needed, because what needs it is committed"),
        ("mini", "reuse", "committed in the store"),
    ]
    assert "a run would train nothing;" in done.stderr


@pytest.mark.parametrize("committed, action", [(0, "reuse"), (1, "skip")])
def test_a_committed_pass_is_shown_as_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: int, action: str
):
    """Also where nothing needs it any more."""
    path = write_chain(tmp_path, stages=["mini"])
    path.write_text(path.read_text().replace("- name: mini\n", "- name: mini\n    teacherPass: {}\n"))
    plan = build_plan(read_chain(str(path)))
    write_store(tmp_path / "store", plan, committed=1, monkeypatch=monkeypatch)
    written = write_pass(tmp_path / "store", "mini", elapsed_s=5.0, processes=1)
    asked = tmp_path / "store" / pass_manifest_key(plan.stages[0].digest)
    asked.parent.mkdir(parents=True)
    asked.write_text(written.read_text().replace(written.parent.name, plan.stages[0].digest))
    if not committed:
        (tmp_path / "store" / manifest_key(plan.stages[1].digest)).unlink()

    done = distillchain_here("plan", "chain.yaml", cwd=tmp_path)

    first = done.stdout.splitlines()[1].split(maxsplit=5)
    assert (first[0], first[3], first[4]) == ("mini-pass", "yes", action)


@pytest.mark.parametrize("is_made", [False, True])
def test_the_export_that_a_committed_teacher_lacks_will_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made: bool
):
    teacher = {"model": "hf://org/teacher", "fineTune": {}, "export": {"onnx": {}}}
    plan = build_plan(read_chain(str(write_chain(tmp_path, teacher=teacher, stages=["mini"]))))
    write_store(tmp_path / "store", plan, committed=1, monkeypatch=monkeypatch)
    if is_made:
        record = tmp_path / "store" / export_record_key(plan.stages[0].digest, "onnx")
        record.parent.mkdir()
        record.write_text("{}")

    done = distillchain_here("plan", "chain.yaml", cwd=tmp_path)

    root, mini = done.stdout.splitlines()[1:]
    want = "reuse   committed in the store" if is_made else "reuse   committed in the store; its export will be made"
    assert (root.split()[0], root.endswith(want)) == ("teacher", True)
    assert mini.endswith("train   not in the store")


def test_a_stored_verdict_is_shown_as_committed(tmp_path: Path):
    plan = build_plan(read_chain(str(write_chain(tmp_path, evidence={"seeds": 2}))))
    assert plan.verdict is not None
    key = evidence_key(plan.students[-1].digest, plan.verdict.digest)

    def planned() -> tuple[str, dict[str, Any]]:
        table = distillchain_here("plan", "chain.yaml", cwd=tmp_path).stdout.splitlines()
        document = json.loads(distillchain_here("plan", "chain.yaml", "-o", "json", cwd=tmp_path).stdout)
        return table[-1].split()[3], document["evidence"][-1]

    cell, entry = planned()
    assert (cell, entry["committed"], "verdict" in entry) == ("no", False, False)

    (tmp_path / "store" / key).parent.mkdir(parents=True)
    (tmp_path / "store" / key).write_text("{}")

    cell, entry = planned()
    assert (cell, entry["committed"], entry["verdict"]) == ("yes", True, f"file://{tmp_path}/store/{key}")
    assert "checkpoint" not in entry
