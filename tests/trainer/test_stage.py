"""One stage, start to end, on small real parts."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, softmax
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from distillchain_api.answer import Committed, Failed, Interrupted, ProgressPhase, parse_progress
from distillchain_api.manifest import Manifest
from distillchain_api.workorder import WorkOrder
from distillchain_trainer.checkpoints import RESTORE
from distillchain_trainer.data import key_of
from distillchain_trainer.errors import (
    CheckpointCorrupt,
    CheckpointInvalid,
    GateNotMet,
    StopRequested,
    StorageDenied,
    StorageUnavailable,
    TrainerError,
)
from distillchain_trainer.progress import Reporter
from distillchain_trainer.run import run_stage
from distillchain_trainer.signals import Signals
from distillchain_trainer.store import Fingerprint
from distillchain_trainer.store_file import FileStore
from trainer.parts import (
    SMALL_BERT,
    an_order,
    answer_in,
    read_json,
    run_here,
    save_bert,
    sentences,
    start_process,
    write_data,
    write_tsv,
)

pytestmark = pytest.mark.models


def manifest_of(root: Path, digest: str) -> Manifest:
    return Manifest.parse((root / f"store/stages/{digest}/manifest.json").read_text())


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
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert {"predictions-validation.jsonl", "predictions-test.jsonl"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    assert manifest.student.metrics.test is not None
    assert answer.checkpoint == f"file://{root}/store/stages/{order.digest}/attempts/{answer.attempt}"
    assert not list(root.glob("store/stages/*/resume/**/*")), "gone after the commit"
    assert not list((root / "work").iterdir()), "nothing is left behind"
    text = Path(answer.checkpoint[7:], "predictions-validation.jsonl").read_text()
    predictions = [json.loads(line) for line in text.splitlines()]
    right = sum(line["label"] == line["predicted"] for line in predictions) / len(predictions)
    assert right == pytest.approx(manifest.student.metrics.validation["accuracy"])


def test_a_committed_stage_is_reused_in_seconds_and_without_torch(root: Path):
    order = an_order(root)
    first = run_here(order, root)
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "teacher")

    process = start_process(order, root, PYTHONPROFILEIMPORTTIME="1")
    _, stderr = process.communicate(timeout=60)

    answer = answer_in(root)
    assert process.returncode == 0, stderr
    assert isinstance(answer, Committed)
    assert answer.reused
    assert answer.attempt == first.attempt
    assert "| torch\n" not in stderr
    assert "| transformers\n" not in stderr


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


def test_teacher_logits_are_computed_once_for_two_runs(root: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "distillchain_trainer")
    run_here(an_order(root), root)
    assert "teacher logits computed" in caplog.text

    answer = run_here(an_order(root, training={"seed": 7}), root, attempt="again")

    assert "teacher logits reused from the store" in caplog.text
    assert manifest_of(root, answer.digest).run.logits_reused


def test_altered_teacher_logits_are_computed_again(root: Path, caplog: pytest.LogCaptureFixture):
    run_here(an_order(root), root)
    (part,) = root.glob("store/logits/*/*.safetensors")
    whole = part.read_bytes()
    part.write_bytes(whole[:-4] + b"abcd")

    answer = run_here(an_order(root, training={"seed": 7}), root, attempt="again")

    assert "teacher logits were altered; they are computed again" in caplog.text
    assert not manifest_of(root, answer.digest).run.logits_reused
    assert part.read_bytes() == whole


@pytest.mark.parametrize("damage", ["altered", "truncated", "deleted"])
def test_a_damaged_commit_is_named_not_used(root: Path, damage: str):
    order = an_order(root)
    weights = Path(run_here(order, root).checkpoint[7:]) / "model.safetensors"
    content = weights.read_bytes()
    damages = {"altered": content[:-1] + bytes([content[-1] ^ 1]), "truncated": content[:-100], "deleted": None}
    weights.unlink()
    if (left := damages[damage]) is not None:
        weights.write_bytes(left)

    with pytest.raises(CheckpointCorrupt) as failure:
        run_here(order, root, attempt="again")

    how = {
        "altered": "was altered: its sha256 is not the one in its manifest",
        "truncated": f"has {len(content) - 100} bytes, its manifest lists {len(content)}",
        "deleted": "is missing",
    }[damage]
    assert str(failure.value) == f"file://{weights} {how}; {RESTORE}"


STAGES = [
    {"name": "one", "student": {"model": "file://{root}/teacher"}, "training": {"epochs": 1, "learningRate": 1e-6}},
    {"name": "two", "student": {"model": "file://{root}/teacher"}, "training": {"epochs": 1, "learningRate": 1e-6}},
]


def two_stages(root: Path) -> list[dict[str, Any]]:
    """Both start from the teacher and hardly move: the first may teach the second at once."""
    parsed: list[dict[str, Any]] = json.loads(json.dumps(STAGES).replace("{root}", str(root)))
    return parsed


def test_a_stage_taught_by_a_damaged_commit_names_it(root: Path):
    stages = two_stages(root)
    weights = Path(run_here(an_order(root, stages=stages), root).checkpoint[7:]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")

    with pytest.raises(CheckpointCorrupt) as failure:
        run_here(an_order(root, stages=stages, stage=1), root, attempt="two")

    assert str(failure.value) == (
        f"file://{weights} was altered: its sha256 is not the one in its manifest; restore it, or delete that stage's "
        "manifest.json, and try again (distillchain retry)"
    )


def test_a_stage_whose_teacher_is_not_committed_says_what_makes_it(root: Path):
    order = an_order(root, stages=two_stages(root), stage=1)

    with pytest.raises(CheckpointCorrupt) as failure:
        run_here(order, root)

    assert order.teacher is not None
    assert str(failure.value) == (
        f"file://{root}/store/stages/{order.teacher.digest}/manifest.json is missing: stage one, which teaches this one, "
        "is not committed (any more): try again (distillchain retry), and stage one is made anew"
    )


def test_a_store_that_was_moved_is_as_good(root: Path):
    stages = two_stages(root)
    run_here(an_order(root, stages=stages), root)
    (root / "store").rename(root / "moved")
    elsewhere = {"uri": f"file://{root}/moved"}

    found = run_here(an_order(root, stages=stages, storage=elsewhere), root, attempt="again")
    taught = run_here(an_order(root, stages=stages, stage=1, storage=elsewhere), root, attempt="two")

    assert found.reused
    assert found.checkpoint.startswith(f"file://{root}/moved/stages/")
    assert Path(found.checkpoint[7:], "config.json").is_file()
    assert taught.teacher is not None


def test_a_manifest_of_a_newer_release_is_adopted(root: Path):
    order = an_order(root)
    run_here(order, root)
    path = root / f"store/stages/{order.digest}/manifest.json"
    manifest = read_json(path)
    manifest["run"]["newFact"] = 1
    path.write_text(json.dumps({**manifest, "newFact": "x"}))

    assert run_here(order, root, attempt="again").reused


def test_a_manifest_of_another_contract_is_never_called_corrupt(root: Path):
    order = an_order(root)
    path = root / f"store/stages/{order.digest}/manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"contract": 2, "digest": order.digest, "student": "in another form"}))

    with pytest.raises(CheckpointInvalid) as failure:
        run_here(order, root)

    assert str(failure.value) == (
        f"file://{path} was made by another release (its contract is 2, this release reads 1); its checkpoint is good: "
        "use an image of that release"
    )


def test_a_cut_manifest_is_named(root: Path):
    order = an_order(root)
    run_here(order, root)
    path = root / f"store/stages/{order.digest}/manifest.json"
    path.write_text(path.read_text()[:200])

    with pytest.raises(CheckpointCorrupt, match=r"manifest\.json cannot be read .*; restore it, or delete it"):
        run_here(order, root, attempt="again")


def test_a_student_under_its_gate_is_kept_and_a_looser_gate_needs_no_training(
    root: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "distillchain_trainer")
    strict = an_order(root, gate={"minMetric": 1.0}, training={"epochs": 1, "learningRate": 0.0001})
    with pytest.raises(GateNotMet) as failure:
        run_here(strict, root)
    assert "is under spec.stages[0].gate.minMetric 1.00" in str(failure.value)
    assert f"the trained student is kept under file://{root}/store/stages/{strict.digest}/resume" in str(failure.value)
    assert not (root / f"store/stages/{strict.digest}/manifest.json").exists()

    loose = an_order(root, gate={"minMetric": 0.1}, training={"epochs": 1, "learningRate": 0.0001})
    answer = run_here(loose, root, attempt="loose")

    assert loose.digest == strict.digest
    assert "training was finished before; its student is measured again" in caplog.text
    run = manifest_of(root, loose.digest).run
    assert run.resumed
    assert run.steps == 10
    measured = float(str(failure.value).split("accuracy ")[1].split(" ")[0])
    assert answer.student.metrics.validation["accuracy"] == pytest.approx(measured, abs=1e-4)


def test_a_committed_stage_must_hold_a_gate_that_was_tightened(root: Path):
    stage = {"training": {"epochs": 1, "learningRate": 0.0001}}
    run_here(an_order(root, **stage), root)

    with pytest.raises(GateNotMet, match=r"maxDrop 0\.00; step down less"):
        run_here(an_order(root, gate={"maxDrop": 0.0}, **stage), root, attempt="again")

    gated = an_order(root, teacher={"model": f"file://{root}/teacher", "gate": {"minMetric": 0.95}}, **stage)
    path = root / f"store/stages/{gated.digest}/manifest.json"
    document = read_json(path)
    document["teacher"]["metrics"]["validation"]["accuracy"] = 0.91
    path.write_text(json.dumps(document))
    with pytest.raises(
        GateNotMet, match=r"teacher: accuracy 0\.91 is under spec\.teacher\.gate\.minMetric 0\.95; fine-tune"
    ):
        run_here(gated, root, attempt="gated")


def test_sigterm_in_training_saves_and_the_next_attempt_goes_on(root: Path):
    write_data(root / "data", train=6000)
    order = an_order(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1h"})
    process = start_process(order, root)
    assert process.stdout is not None
    for line in process.stdout:
        progress = parse_progress(line)
        if progress and progress.phase == "Train" and progress.step > 20:
            break
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    stopped = answer_in(root)
    assert isinstance(stopped, Interrupted)
    assert stopped.step > 20
    assert stopped.message.startswith(f"stopped from outside; its state at step {stopped.step} is saved, ")
    (index,) = root.glob(f"store/stages/{order.digest}/resume/*/index.json")
    assert read_json(index)["step"] == stopped.step

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(6))
    assert stop.value.step > stopped.step, "it goes on from there"
    assert stop.value.step < stopped.step + 6


class StopAfter(Signals):
    """Told to stop after so many looks: a signal at an exact moment."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property
    def requested(self) -> bool:  # type: ignore[override]  # read where the base class has an attribute
        self._looks -= 1
        return self._looks < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def test_a_resumed_student_is_the_one_that_was_never_stopped(root: Path):
    order = an_order(root, training={"epochs": 3})
    whole = run_here(
        order.model_copy(update={"storage": order.storage.model_copy(update={"uri": f"file://{root}/other"})}), root
    )
    for looks in (15, 10):
        with pytest.raises(StopRequested) as stop:
            run_here(order, root, attempt=f"a{looks}", signals=StopAfter(looks))
        assert 0 < stop.value.step < 30

    answer = run_here(order, root, attempt="last")

    run = manifest_of(root, order.digest).run
    assert (run.steps, run.resumed) == (30, True)
    assert _weights(answer) == _weights(whole)


def _weights(answer: Committed) -> bytes:
    return (Path(answer.checkpoint[7:]) / "model.safetensors").read_bytes()


def test_a_half_written_state_is_passed_over(root: Path, caplog: pytest.LogCaptureFixture):
    order = an_order(root, training={"epochs": 3})
    stops = []
    for looks in (12, 8):
        with pytest.raises(StopRequested) as stop:
            run_here(order, root, attempt=f"a{looks}", signals=StopAfter(looks))
        stops.append(stop.value.step)
    states = sorted(root.glob(f"store/stages/{order.digest}/resume/*"))
    assert len(states) == 2
    (states[1] / "optimizer.pt").write_bytes(b"half")

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(5))

    assert "saved state is not whole; an older one is taken" in caplog.text
    assert stops[0] < stop.value.step < stops[1]


def _inverted_labels(root: Path) -> None:
    write_tsv(root / "data/train.tsv", [(text, 1 - label) for text, label in sentences(160, 1)])


def _another_teacher(root: Path) -> None:
    weights = load_file(root / "teacher/model.safetensors")
    weights["classifier.bias"] += 0.01
    save_file(weights, root / "teacher/model.safetensors", metadata={"format": "pt"})


def _another_start(root: Path) -> None:
    save_bert(root / "encoder", labels=None, seed=6)


@pytest.mark.parametrize("change", [_inverted_labels, _another_teacher, _another_start])
def test_a_state_of_other_contents_is_not_taken_over(
    root: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    save_bert(root / "encoder", labels=None, seed=5)
    order = an_order(root, student={"model": f"file://{root}/encoder"})
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="first", signals=StopAfter(18))
    assert stop.value.step > 10
    change(root)

    with pytest.raises(StopRequested) as again:  # states of fewer steps are kept beside the older ones
        run_here(order, root, attempt="second", signals=StopAfter(12))
    assert again.value.step < stop.value.step
    assert "no saved state can be used" in caplog.text
    run_here(order, root, attempt="third")

    run = manifest_of(root, order.digest).run
    assert (run.steps, run.resumed) == (20, True)
    assert not list(root.glob("store/stages/*/resume/**/*")), "gone after the commit, the older ones too"


def test_a_classifier_with_weights_of_older_names_is_resumed_whole(root: Path):
    folder = save_bert(root / "legacy", seed=5)
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    order = an_order(root, student={"model": f"file://{folder}"}, gate={"minMetric": 1.0})
    whole = run_here(
        an_order(root, student={"model": f"file://{folder}"}, storage={"uri": f"file://{root}/other"}), root
    )
    with pytest.raises(StopRequested):
        run_here(order, root, attempt="first", signals=StopAfter(12))
    with pytest.raises(GateNotMet):
        run_here(order, root, attempt="second")  # its state is finished: weights alone

    loose = an_order(root, student={"model": f"file://{folder}"})
    answer = run_here(loose, root, attempt="third")

    assert manifest_of(root, order.digest).run.resumed
    assert _weights(answer) == _weights(whole)


def test_a_killed_attempt_loses_no_more_than_the_save_interval(root: Path):
    write_data(root / "data", train=6000)
    order = an_order(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1s"})
    process = start_process(order, root)
    assert process.stdout is not None
    stage = root / f"store/stages/{order.digest}"
    for line in process.stdout:  # about one a second
        if "Train" in line and len(list(stage.glob("resume/*/index.json"))) == 2:
            break
    process.kill()
    process.communicate()
    saved = max(read_json(path)["step"] for path in stage.glob("resume/*/index.json"))

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(2))

    assert 0 < saved < stop.value.step <= saved + 2
    assert len(list(stage.glob("resume/*/index.json"))) == 2, "the newest two"


def test_a_stop_while_uploading_is_told_with_the_finished_training_and_leaves_no_half_attempt(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    order, signals = an_order(root), Signals()
    real = FileStore.upload

    def upload(self: FileStore, key: str, path: Path) -> Fingerprint:
        if "/attempts/" in key and key.endswith("model.safetensors"):
            signals._on_signal(signal.SIGTERM, None)
        return real(self, key, path)

    monkeypatch.setattr(FileStore, "upload", upload)
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, signals=signals)

    assert stop.value.step == 20
    assert not (root / f"store/stages/{order.digest}/attempts").exists()


def test_the_test_split_changes_nothing_but_its_own_numbers(root: Path):
    write_tsv(root / "data/other.tsv", sentences(30, 9))
    answers = [
        run_here(an_order(root, splits=splits, storage={"uri": f"file://{root}/{name}"}), root, attempt=name)
        for name, splits in {"a": {}, "b": {"test": "test.tsv"}, "c": {"test": "other.tsv"}}.items()
    ]

    assert len({_weights(answer) for answer in answers}) == 1
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
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    student = {
        "architecture": {"modelType": "bert", "config": {**SMALL_BERT, **still}},
        "tokenizer": f"file://{root}/teacher",
    }
    temperature = 2.0
    order = an_order(
        root,
        student=student,
        splits={"validation": "train.tsv"},
        training={"epochs": 1, "learningRate": 1e-12},
        distillation={"alpha": alpha, "temperature": temperature},
    )

    answer = run_here(order, root)

    lines = Path(answer.checkpoint[7:], "predictions-validation.jsonl").read_text().splitlines()
    mine = np.array([json.loads(line)["logits"] for line in lines])
    truth = np.array([label for _, label in sentences(160, 1)])
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
        theirs = np.array([kept[key_of((text,))] for text, _ in sentences(160, 1)]) / temperature
        gap = log_softmax(theirs, axis=-1) - log_softmax(mine / temperature, axis=-1)
        soft = temperature**2 * (softmax(theirs, axis=-1) * gap).sum(-1).mean()
    want = (1 - alpha) * hard + alpha * soft
    assert manifest_of(root, order.digest).run.final_loss == pytest.approx(want, rel=1e-4)


class Phases(Reporter):
    """Remembers the phases it was told."""

    def __init__(self) -> None:
        super().__init__("small", None)
        self.seen: list[str] = []

    def report(self, phase: ProgressPhase, *_: Any, **__: Any) -> None:
        if phase not in self.seen:
            self.seen.append(phase)


@pytest.mark.parametrize("turned", [False, True])
def test_an_unnamed_head_of_a_start_is_kept_only_when_it_proves_itself(
    root: Path, turned: bool, caplog: pytest.LogCaptureFixture
):
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
    phases = Phases()

    answer = run_stage(order, attempt="a", folder=root / "work", reporter=phases, signals=Signals())

    got = load_file(Path(answer.checkpoint[7:]) / "model.safetensors")
    assert torch.allclose(got["classifier.weight"], head["classifier.weight"], atol=1e-6) != turned
    assert torch.allclose(got["bert.pooler.dense.weight"], head["bert.pooler.dense.weight"], atol=1e-6), (
        "its encoder stays"
    )
    assert ("the student gets a new head" in caplog.text) == turned
    assert phases.seen[:4] == ["FetchTeacher", "MeasureTeacher", "MeasureStudent", "TeacherLogits"]
    assert read_json(Path(answer.checkpoint[7:]) / "config.json")["id2label"] == {"0": "negative", "1": "positive"}


class Rival(Reporter):
    """At the last moment before this trainer uploads, another one commits the same stage."""

    def __init__(self, order: WorkOrder, root: Path) -> None:
        super().__init__(order.stage, None)
        self._order, self._root = order, root

    def report(self, phase: ProgressPhase, step: int, of: int, **_: float | None) -> None:
        if (phase, step) == ("Upload", 0):
            run_here(self._order, self._root, attempt="rival")


def test_of_two_trainers_one_commits_and_the_other_adopts(root: Path):
    order = an_order(root)
    (root / "work").mkdir()

    answer = run_stage(order, attempt="late", folder=root / "work", reporter=Rival(order, root), signals=Signals())

    assert answer.attempt == "rival"
    assert answer.reused
    assert manifest_of(root, order.digest).attempt == "rival"
    attempts = [path.name for path in root.glob(f"store/stages/{order.digest}/attempts/*")]
    assert attempts == ["rival"], "the loser's objects are gone"


@pytest.mark.parametrize("fault", [StorageUnavailable("away"), StorageDenied("no right to delete")])
def test_a_store_that_does_not_delete_fails_no_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: TrainerError
):
    """`delete` stands in for a store that is away just then, or gives no right to delete: root may always."""

    def refuse(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(FileStore, "delete", refuse)
    order = an_order(root)
    (root / "work").mkdir()

    first = run_stage(order, attempt="late", folder=root / "work", reporter=Rival(order, root), signals=Signals())
    again = run_here(order, root, attempt="again")

    assert [(answer.attempt, answer.reused) for answer in (first, again)] == [("rival", True), ("rival", True)]
    told = {vars(record)["objects"] for record in caplog.records if record.message.startswith("the store does not")}
    stage = f"file://{root}/store/stages/{order.digest}"
    assert told == {f"{stage}/resume/", f"{stage}/attempts/late/"}


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
