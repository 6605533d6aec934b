"""One stage, start to end, on small real parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, softmax
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from distillchain_api.wire.answer import Committed, Failed, ProgressPhase, parse_progress
from distillchain_api.wire.manifest import Manifest
from distillchain_trainer.data.split import key_of
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage.progress import Reporter
from distillchain_trainer.stage.run import run_stage
from trainer.parts import (
    an_order,
    answer_in,
    manifest_of,
    new_student,
    read_json,
    run_here,
    save_bert,
    sentences,
    start_process,
    weights_of,
    write_tsv,
)

pytestmark = pytest.mark.models


def test_stage_zero_teaches_an_encoder_its_task(taught: Path):
    model = AutoModelForSequenceClassification.from_pretrained(taught / "teacher")

    assert model.config.id2label == {0: "negative", 1: "positive"}
    (manifest_path,) = taught.glob("store/stages/*/manifest.json")
    manifest = Manifest.parse(manifest_path.read_text())
    assert manifest.teacher is None
    assert manifest.pretrained
    assert manifest.student.metrics.validation["accuracy"] > 0.9


def test_a_stage_run_as_a_process_commits_and_says_so(root: Path):
    order = an_order(root, splits={"test": "test.tsv"})

    process = start_process(order, root, HOME="/nonexistent", TMPDIR="/nonexistent")  # as in a pod
    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    answer = answer_in(root)
    assert isinstance(answer, Committed)
    assert not answer.reused
    assert not answer.pretrained
    lines = [parse_progress(line) for line in stdout.splitlines()]
    assert all(lines), "only progress on stdout"
    phases = list(dict.fromkeys(line.phase for line in lines if line))
    assert phases == ["FetchTeacher", "MeasureTeacher", "TeacherLogits", "Train", "Evaluate", "Upload"]
    last = [line for line in lines if line and line.phase == "Train"][-1]
    assert (last.step, last.of) == (20, 20)
    assert last.loss is not None
    manifest = manifest_of(root, order.digest)
    names = {entry.path for entry in manifest.files}
    assert {f"checkpoint/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json")} <= names
    assert {f"results/predictions-{split}.jsonl" for split in ("validation", "test")} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    assert manifest.student.metrics.test is not None
    assert answer.checkpoint == f"file://{root}/store/stages/{order.digest}/attempts/{answer.attempt}/checkpoint"
    assert not list(root.glob("store/stages/*/resume/**/*")), "gone after the commit"
    assert not list((root / "work").iterdir()), "nothing is left behind"
    text = Path(answer.checkpoint[7:], "../results/predictions-validation.jsonl").read_text()
    predictions = [json.loads(line) for line in text.splitlines()]
    right = sum(line["label"] == line["predicted"] for line in predictions) / len(predictions)
    assert right == pytest.approx(manifest.student.metrics.validation["accuracy"])


def test_the_next_stage_is_taught_by_the_committed_one_and_shares_nothing_else(root: Path):
    student = {"model": f"file://{root}/encoder"}
    save_bert(root / "encoder", labels=None, seed=5)
    stages = [
        {"name": "one", "student": student, "training": {"epochs": 6}},
        {"name": "two", "student": student, "training": {"epochs": 1}},
    ]
    run_here(an_order(root, stages=stages), root)
    shutil.rmtree(root / "teacher")

    answer = run_here(an_order(root, stages=stages, stage=1), root, attempt="two")

    manifest = manifest_of(root, answer.digest)
    assert manifest.teacher is not None
    assert manifest.teacher.digest == an_order(root, stages=stages).digest
    assert manifest.start.startswith(f"file://{root}/encoder (sha256:")


def test_a_student_that_learned_nothing_is_committed_and_reported(root: Path):
    order = an_order(root, training={"epochs": 1, "learningRate": 1e-9})

    first, again = run_here(order, root), run_here(order, root, attempt="again")

    assert first.student.doubt is not None
    assert "could be luck" in first.student.doubt
    assert (again.reused, again.student.doubt) == (True, first.student.doubt)
    assert first.teacher is not None
    assert first.teacher.doubt is None


def test_a_class_that_a_model_never_predicts_is_a_warning_of_the_stage(root: Path):
    """Teacher and student name two of three classes only; the student is not trained enough to change that."""
    labels = ["negative", "positive", "mixed"]
    for name in ("train", "dev"):
        with (root / f"data/{name}.tsv").open("a") as file:
            file.write("".join(f"a film of {name} {row}\t2\n" for row in range(6)))
    config = root / "teacher/config.json"
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: row for row, name in enumerate(labels)}}
    config.write_text(json.dumps(read_json(config) | names))
    head = load_file(root / "teacher/model.safetensors")
    head["classifier.weight"] = torch.cat([head["classifier.weight"], torch.zeros(1, 16)])
    head["classifier.bias"] = torch.cat([head["classifier.bias"], torch.tensor([-50.0])])
    save_file(head, root / "teacher/model.safetensors", metadata={"format": "pt"})
    order = an_order(
        root,
        task={"labels": labels},
        student={"model": f"file://{root}/teacher"},
        training={"epochs": 1, "learningRate": 1e-9},
    )

    answer = run_here(order, root)

    missed = "it never predicts 1 of 3 classes of validation: mixed"
    want = [f"teacher file://{root}/teacher: {missed}", f"the trained model: {missed}"]
    assert [warning for warning in answer.warnings if missed in warning] == want
    assert manifest_of(root, order.digest).warnings == answer.warnings


def test_the_test_split_changes_nothing_but_its_own_numbers(root: Path):
    write_tsv(root / "data/other.tsv", sentences(30, 9))
    answers = [
        run_here(an_order(root, splits=splits, storage={"uri": f"file://{root}/{name}"}), root, attempt=name)
        for name, splits in {"a": {}, "b": {"test": "test.tsv"}, "c": {"test": "other.tsv"}}.items()
    ]

    assert len({weights_of(answer) for answer in answers}) == 1
    assert len({answer.student.metrics.validation["accuracy"] for answer in answers}) == 1
    assert answers[0].student.metrics.test is None
    assert answers[2].student.metrics.test is not None


def test_pairs_of_texts_are_taught_with_their_token_types(root: Path, monkeypatch: pytest.MonkeyPatch):
    for name, rows, seed in (("train", 160, 1), ("dev", 60, 2)):
        lines = [(text.split(" ", 1), label) for text, label in sentences(rows, seed)]
        content = "".join(f"{first}\t{label}\t{second}\n" for (first, second), label in lines)
        (root / f"data/{name}.tsv").write_text("first\tlabel\tsecond\n" + content)
    seen: list[Any] = []
    real = BertForSequenceClassification.forward

    def forward(self: Any, **inputs: Any) -> Any:
        seen.append((self.config.hidden_size, inputs["input_ids"], inputs["token_type_ids"]))
        return real(self, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)

    answer = run_here(an_order(root, dataset={"text": ["first", "second"]}), root)

    assert answer.teacher is not None
    assert {size for size, _, _ in seen} == {8, 16}, "student and teacher"
    separator = 3
    for _, ids, kinds in seen:
        first = (ids == separator).cumsum(-1) - (ids == separator).long() == 0  # up to the first [SEP]
        assert bool((kinds[first] == 0).all())
        second = ~first & (ids != 0)
        assert bool(second.any())
        assert bool((kinds[second] == 1).all())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_labels_and_teacher_share_the_loss_by_alpha(root: Path, alpha: float):
    """A student that hardly moves, measured on the rows it learns from: its loss is a formula of what was kept."""
    student = new_student(root, dropout=0.0)
    temperature = 2.0
    rows = sentences(160, 1)
    write_tsv(root / "data/train-reversed.tsv", [*rows[::-1], ("the same texts alone would be refused", 1)])
    order = an_order(
        root,
        student=student,
        splits={"validation": "train-reversed.tsv"},
        training={"epochs": 1, "learningRate": 1e-12},
        distillation={"alpha": alpha, "temperature": temperature},
    )

    answer = run_here(order, root)

    lines = Path(answer.checkpoint[7:], "../results/predictions-validation.jsonl").read_text().splitlines()[:160]
    mine = np.array([json.loads(line)["logits"] for line in lines])
    truth = np.array([label for _, label in rows[::-1]])
    hard = -log_softmax(mine, axis=-1)[np.arange(160), truth].mean()
    parts = [load_file(path) for path in root.glob("store/logits/*/*.safetensors")]
    assert bool(parts) == (alpha > 0), "where only the labels count, the teacher is not asked"
    soft = 0.0
    if parts:
        kept = {
            bytes(key.numpy()): row.numpy()
            for part in parts
            for key, row in zip(part["keys"], part["logits"], strict=True)
        }
        theirs = np.array([kept[key_of((text,))] for text, _ in rows[::-1]]) / temperature
        gap = log_softmax(theirs, axis=-1) - log_softmax(mine / temperature, axis=-1)
        soft = temperature**2 * (softmax(theirs, axis=-1) * gap).sum(-1).mean()
    want = (1 - alpha) * hard + alpha * soft
    assert manifest_of(root, order.digest).run.final_loss == pytest.approx(want, rel=1e-4)


class Phases(Reporter):
    """Remembers the phases it was told, and those in which the teacher's files were in the work folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("small", None)
        self.seen: list[str] = []
        self.with_teacher: list[str] = []
        self._folder = folder

    def report(self, phase: ProgressPhase, *_: Any, **__: Any) -> None:
        if phase not in self.seen:
            self.seen.append(phase)
            if list(self._folder.glob("teacher/**/model.safetensors")):
                self.with_teacher.append(phase)


@pytest.mark.parametrize("alpha", [1.0, 0.0])
def test_the_teachers_files_are_deleted_before_training(root: Path, alpha: float):
    student = {"model": f"file://{root}/encoder"}
    save_bert(root / "encoder", labels=None, seed=5)
    stages = [
        {"name": "one", "student": student, "training": {"epochs": 6}},
        {"name": "two", "student": student, "distillation": {"alpha": alpha}},
    ]
    run_here(an_order(root, stages=stages), root)
    (root / "work").mkdir()
    phases = Phases(root / "work")

    order = an_order(root, stages=stages, stage=1)
    run_stage(order, attempt="a", folder=root / "work", reporter=phases, signals=Signals())

    assert "MeasureTeacher" in phases.with_teacher
    assert "Train" in phases.seen
    assert not {"Train", "Evaluate", "Upload"} & set(phases.with_teacher)


@pytest.mark.parametrize("turned", [False, True])
def test_an_unnamed_head_of_a_start_is_kept_only_when_it_proves_itself(root: Path, turned: bool):
    shutil.copytree(root / "teacher", root / "unnamed")
    names = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    config = root / "unnamed/config.json"
    config.write_text(json.dumps(read_json(config) | names))
    head = load_file(root / "unnamed/model.safetensors")
    if turned:
        for name in ("classifier.weight", "classifier.bias"):
            head[name] = head[name].flip(0).contiguous()
        save_file(head, root / "unnamed/model.safetensors", metadata={"format": "pt"})
    order = an_order(root, student={"model": f"file://{root}/unnamed"}, training={"epochs": 1, "learningRate": 1e-12})
    (root / "work").mkdir()
    phases = Phases(root / "work")

    answer = run_stage(order, attempt="a", folder=root / "work", reporter=phases, signals=Signals())

    got = load_file(Path(answer.checkpoint[7:]) / "model.safetensors")
    assert torch.allclose(got["classifier.weight"], head["classifier.weight"], atol=1e-6) != turned
    assert torch.allclose(got["bert.pooler.dense.weight"], head["bert.pooler.dense.weight"], atol=1e-6), (
        "its encoder stays"
    )
    assert any("it starts with a new head" in warning for warning in answer.warnings) == turned
    assert phases.seen[:4] == ["FetchTeacher", "MeasureTeacher", "MeasureStudent", "TeacherLogits"]
    assert read_json(Path(answer.checkpoint[7:]) / "config.json")["id2label"] == {"0": "negative", "1": "positive"}


def test_a_work_order_that_cannot_be_read_ends_with_64(root: Path):
    document = json.loads(an_order(root).to_json())
    document["stagee"] = document.pop("stage")

    process = start_process(json.dumps(document), root)
    process.communicate(timeout=60)

    assert process.returncode == 64
    answer = answer_in(root)
    assert isinstance(answer, Failed)
    assert answer.message == (
        "DISTILLCHAIN_WORK_ORDER: stage: missing; add it; stagee: unknown field; did you mean stage?"
    )
