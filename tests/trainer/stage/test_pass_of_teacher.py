"""The pass of a teacher as work of its own: the stage after it trains the same student and never loads the teacher."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.pass_manifest import PassManifest
from distillchain_store.errors import CheckpointCorrupt
from distillchain_store.folder import FileStore
from distillchain_store.passes import read_pass
from distillchain_trainer import libraries
from distillchain_trainer.errors import GateNotMet
from smollm2.texts import as_chat
from trainer import language_parts
from trainer.parts import LABELS, a_chain_document, manifest_of, run_here, save_bert, sentences, write_tsv

pytestmark = pytest.mark.models


def a_plan(root: Path, *, teacher_pass: bool = True, **parts: Any) -> Plan:
    document = a_chain_document(root, **parts)
    if teacher_pass:
        document["spec"]["stages"][0]["teacherPass"] = {}
    return build_plan(parse_chain(document))


def run_all(plan: Plan, root: Path, *, name: str = "a") -> list[Committed]:
    return [run_here(stage.work_order, root, attempt=f"{name}-{stage.name}") for stage in plan.stages]


def weights_of(answer: Committed) -> bytes:
    return Path(answer.checkpoint.removeprefix("file://"), "model.safetensors").read_bytes()


def pass_of(plan: Plan, root: Path) -> PassManifest:
    manifest = read_pass(FileStore(f"file://{root}/store"), plan.stages[0].digest)
    assert manifest is not None
    return manifest


def test_a_stage_trains_the_same_student_after_a_pass_without_the_weights_of_its_teacher(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "distillchain_trainer")
    with_pass, without = a_plan(root), a_plan(root, teacher_pass=False)
    (alone,) = run_all(without, root)
    shutil.copytree(root / "store", tmp_path / "kept")
    shutil.rmtree(root / "store")

    asked = run_here(with_pass.stages[0].work_order, root, attempt="pass")
    (root / "teacher" / "model.safetensors").unlink()
    student = run_here(with_pass.stages[1].work_order, root, attempt="student")

    assert student.digest == alone.digest
    assert (
        weights_of(student)
        == Path(tmp_path, "kept", alone.checkpoint.split("/store/")[1], "model.safetensors").read_bytes()
    )
    assert asked.student.metrics == student.teacher.metrics
    manifest = manifest_of(root, student.digest)
    assert manifest.teacher == pass_of(with_pass, root).teacher
    assert not manifest.run.logits_reused, "its own pass has computed them"
    assert "teacher logits read from its pass" in caplog.text
    assert "teacher logits reused" not in caplog.text
    assert manifest.run.teacher_pass == with_pass.stages[0].digest
    results = Path(student.checkpoint.removeprefix("file://")).parent / "results"
    assert len((results / "teacher-predictions-validation.jsonl").read_text().splitlines()) == 60


def test_what_a_pass_keeps_of_a_teacher_with_another_order_of_classes_is_in_that_of_the_task(
    root: Path, tmp_path: Path
):
    config = root / "teacher" / "config.json"
    document = json.loads(config.read_text())
    labels = document["id2label"]
    names = [labels[key] for key in sorted(labels, key=int)][::-1]
    document |= {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    config.write_text(json.dumps(document))
    weights = safetensors.numpy.load_file(root / "teacher" / "model.safetensors")
    turned = {
        name: np.ascontiguousarray(w[::-1]) if name.startswith("classifier.") else w for name, w in weights.items()
    }
    safetensors.numpy.save_file(turned, root / "teacher" / "model.safetensors", metadata={"format": "pt"})
    with_pass, without = a_plan(root), a_plan(root, teacher_pass=False)
    (alone,) = run_all(without, root)
    kept = predictions_of_teacher(alone).read_bytes()
    shutil.rmtree(root / "store")

    run_here(with_pass.stages[0].work_order, root, attempt="pass")
    student = run_here(with_pass.stages[1].work_order, root, attempt="student")

    assert predictions_of_teacher(student).read_bytes() == kept


def predictions_of_teacher(answer: Any) -> Path:
    return Path(answer.checkpoint.removeprefix("file://")).parent / "results" / "teacher-predictions-validation.jsonl"


def test_a_pass_that_is_committed_is_reused_by_another_chain(root: Path):
    first = a_plan(root)
    run_here(first.stages[0].work_order, root, attempt="first")
    document = a_chain_document(root, training={"epochs": 1, "learningRate": 0.001})
    document["metadata"]["name"] = "other"
    document["spec"]["stages"][0]["teacherPass"] = {}
    other = build_plan(parse_chain(document))
    (root / "teacher" / "model.safetensors").unlink()

    answers = run_all(other, root)

    assert answers[0].reused
    assert not answers[1].reused
    assert manifest_of(root, answers[1].digest).run.logits_reused


def test_a_student_with_layers_of_its_teacher_needs_the_checkpoint_and_not_the_model(root: Path):
    plan = a_plan(root, student={"fromTeacher": {"layers": 1}})

    _, student = run_all(plan, root)

    assert f"{root}/teacher" in manifest_of(root, student.digest).start


def test_a_teacher_at_chance_answers_for_no_row(root: Path):
    save_bert(root / "untrained", labels=LABELS)
    plan = a_plan(root, teacher={"model": f"file://{root}/untrained"})

    with pytest.raises(GateNotMet):
        run_here(plan.stages[0].work_order, root, attempt="pass")

    assert not (root / "store/passes").exists()


def test_missing_outputs_are_an_error_and_not_computed(root: Path):
    plan = a_plan(root)
    run_here(plan.stages[0].work_order, root, attempt="pass")
    shutil.rmtree(root / "store/logits")

    with pytest.raises(CheckpointCorrupt, match=r"lacks the teacher's outputs of \d+ of \d+ texts"):
        run_here(plan.stages[1].work_order, root, attempt="student")


def test_a_pass_that_is_no_longer_committed_is_named(root: Path):
    plan = a_plan(root)

    with pytest.raises(CheckpointCorrupt, match=f"passes/{plan.stages[0].digest}/manifest.json is missing"):
        run_here(plan.stages[1].work_order, root, attempt="student")


def test_the_pass_of_a_committed_language_model_is_enough_for_its_student(tmp_path: Path):
    language_parts.write_sentences(tmp_path / "data", as_chat)
    language_parts.save_llama(tmp_path / "start")
    config = {**language_parts.SMALL_LLAMA, "num_hidden_layers": 1}
    student = {"architecture": {"modelType": "llama", "config": config}, "tokenizer": f"file://{tmp_path}/start"}
    document = language_parts.a_chain_document(
        tmp_path,
        task=language_parts.a_task_document(tmp_path / "data", "messages"),
        teacher={"model": f"file://{tmp_path}/start", "fineTune": {}},
        template={"training": {"epochs": 3, "batchSize": 8, "learningRate": 0.02}},
        stages=[{"name": "small", "student": student, "teacherPass": {}}],
    )
    plan = build_plan(parse_chain(document))
    teacher, asked = (run_here(stage.work_order, tmp_path, attempt=stage.name) for stage in plan.stages[:2])
    Path(teacher.checkpoint.removeprefix("file://"), "model.safetensors").unlink()

    answer = run_here(plan.stages[2].work_order, tmp_path, attempt="small")

    assert [stage.needs for stage in plan.stages] == [(), ("teacher",), ("teacher", "small-pass")]
    assert asked.student.metrics == answer.teacher.metrics
    assert 0 < answer.student.metrics.validation["teacherAgreement"] <= 1


def a_plan_with_stage_zero(root: Path) -> Plan:
    return a_plan(root, teacher={"model": f"file://{root}/teacher", "fineTune": {"epochs": 1}})


def train_stage_zero_again(plan: Plan, root: Path) -> None:
    """The commit of stage zero is deleted, and another start behind the same URI gives it other weights."""
    shutil.rmtree(root / "store" / "stages" / plan.stages[0].digest)
    start = safetensors.numpy.load_file(root / "teacher" / "model.safetensors")
    start["classifier.bias"] += np.float32(0.01)
    safetensors.numpy.save_file(start, root / "teacher" / "model.safetensors", metadata={"format": "pt"})
    run_here(plan.stages[0].work_order, root, attempt="teacher-again")


def test_a_stage_refuses_the_pass_of_other_weights_of_its_teacher_and_withdraws_it(root: Path):
    plan = a_plan_with_stage_zero(root)
    teacher, asked, student = plan.stages
    for stage in (teacher, asked):
        run_here(stage.work_order, root, attempt=stage.name)
    train_stage_zero_again(plan, root)

    with pytest.raises(CheckpointCorrupt) as error:
        run_here(student.work_order, root, attempt="student")

    assert str(error.value) == (
        f"stage teacher was trained again after its pass {asked.digest[:12]}, which used other weights; try again "
        "(distillchain retry, or run without a cluster), and the pass runs again"
    )
    assert not run_here(asked.work_order, root, attempt="pass-again").reused
    taught = run_here(student.work_order, root, attempt="student-again")
    assert manifest_of(root, taught.digest).teacher.revision == manifest_of(root, teacher.digest).student.revision


def test_a_pass_of_other_weights_of_its_teacher_is_made_again(root: Path):
    plan = a_plan_with_stage_zero(root)
    for stage in plan.stages[:2]:
        run_here(stage.work_order, root, attempt=stage.name)
    before = read_pass(FileStore(f"file://{root}/store"), plan.stages[1].digest)
    train_stage_zero_again(plan, root)

    answer = run_here(plan.stages[1].work_order, root, attempt="pass-again")

    after = read_pass(FileStore(f"file://{root}/store"), plan.stages[1].digest)
    assert before.teacher_files != after.teacher_files
    assert after.attempt == answer.attempt == "pass-again"


def damage_outputs(plan: Plan, root: Path) -> None:
    folder = root / "store/passes" / plan.stages[0].digest / "attempts/pass/results"
    (folder / "outputs-validation.safetensors").write_bytes(b"other")


def test_a_pass_with_a_damaged_file_is_made_again(root: Path):
    plan = a_plan(root)
    run_here(plan.stages[0].work_order, root, attempt="pass")
    damage_outputs(plan, root)

    answer = run_here(plan.stages[0].work_order, root, attempt="again")

    assert not answer.reused
    run_here(plan.stages[1].work_order, root, attempt="student")


@pytest.mark.parametrize("harm", ["a file of the pass", "stored outputs", "rows of validation"])
def test_after_a_stage_could_not_use_its_pass_the_pass_and_the_stage_run_again(harm: str, root: Path):
    plan = a_plan(root)
    run_here(plan.stages[0].work_order, root, attempt="pass")
    if harm == "a file of the pass":
        damage_outputs(plan, root)
    elif harm == "stored outputs":
        shutil.rmtree(root / "store/logits")
    else:
        write_tsv(root / "data/dev.tsv", sentences(50, 9))
    with pytest.raises(CheckpointCorrupt, match=r"; try again \(distillchain retry, .+\), and the pass runs again$"):
        run_here(plan.stages[1].work_order, root, attempt="student")

    answers = run_all(plan, root, name="retried")

    assert not answers[0].reused
    assert answers[1].student.metrics.validation["accuracy"] > 0


def test_a_pass_asks_for_libraries_as_a_stage_does(root: Path, monkeypatch: pytest.MonkeyPatch):
    class Asked(BaseException):
        pass

    def ask() -> None:
        raise Asked

    # As the fork server sets it in a trainer that has to be forked again.
    monkeypatch.setattr(libraries, "instead", ask)

    with pytest.raises(Asked):
        run_here(a_plan(root).stages[0].work_order, root, attempt="pass")
