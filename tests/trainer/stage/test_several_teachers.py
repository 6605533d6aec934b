"""A student of several teachers: what it learns, what is stored, and which teacher a message names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from distillchain_api.wire.work_order import WorkOrder
from distillchain_store.errors import CheckpointCorrupt
from distillchain_trainer.engine.training.loop import train
from distillchain_trainer.errors import GateNotMet, StopRequested
from distillchain_trainer.models.loaded import Loaded
from distillchain_trainer.stage import further_teachers, prepare, train_student
from distillchain_trainer.stage.prepare import load_teacher
from trainer.parts import (
    LABELS,
    StopAfter,
    an_order,
    manifest_of,
    new_student,
    read_json,
    run_here,
    save_bert,
    sentences,
    trained_rows,
    weights_of,
)
from trainer.rank_parts import Attempt, distance, start_stage

pytestmark = pytest.mark.models


def another_teacher(root: Path) -> str:
    """As good as the first one, less sure, and with its labels in the other order."""
    folder = shutil.copytree(root / "teacher", root / "other")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = 0.5 * weights["classifier.weight"].flip(0)
    weights["classifier.bias"] = 0.5 * weights["classifier.bias"].flip(0) + 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = read_json(folder / "config.json")
    config["id2label"] = {"0": LABELS[1], "1": LABELS[0]}
    config["label2id"] = {LABELS[1]: 0, LABELS[0]: 1}
    (folder / "config.json").write_text(json.dumps(config))
    return f"file://{folder}"


def a_student(root: Path) -> dict[str, Any]:
    """Without dropout, so that several processes give the weights of one."""
    return new_student(root, dropout=0.0, hidden_size=8)


def teachers_order(
    root: Path, store: str = "store", *, weights: tuple[float, ...] = (2.0, 1.0), **parts: Any
) -> WorkOrder:
    teachers: list[dict[str, Any]] = [{"stage": "teacher", "weight": weights[0]}]
    if len(weights) > 1:
        teachers.append({"model": f"file://{root}/other", "weight": weights[1]})
    student = a_student(root)
    stage = {"name": "small", "student": student, "teachers": teachers, "gate": parts.pop("gate", {})}
    return an_order(root, stages=[stage], storage={"uri": f"file://{root}/{store}"}, **parts)


def probabilities(folder: Path, texts: list[str], temperature: float) -> torch.Tensor:
    """Of LABELS, text by text in plain transformers."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    order = [model.config.label2id[label] for label in LABELS]
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=16)).logits[0] for text in texts
        ]
    return (torch.stack(rows)[:, order] / temperature).softmax(-1)


def test_the_student_learns_the_mean_of_the_probabilities(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Against plain transformers, with labels in another order and a temperature."""
    another_teacher(root)
    seen = trained_rows(monkeypatch)
    order = teachers_order(root, distillation={"temperature": 2.0})

    run_here(order, root)

    texts = [text for text, _ in sentences(160, 1)]
    (rows,) = seen
    _, compared = rows.batch(torch.arange(len(texts)), width=int(rows.lengths.max()))
    found = (compared["teacher"] / 2.0).softmax(-1)
    want = (2 * probabilities(root / "teacher", texts, 2.0) + probabilities(root / "other", texts, 2.0)) / 3
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert (want - probabilities(root / "teacher", texts, 2.0)).abs().max() > 0.02, "the other one has a say"
    manifest = manifest_of(root, order.digest)
    (other,) = manifest.further_teachers
    assert (other.name, round(other.share, 4), other.facts.source) == (
        f"file://{root}/other",
        0.3333,
        f"file://{root}/other",
    )
    assert other.facts.metrics.validation["accuracy"] > 0.9
    assert (root / "other/model.safetensors").exists(), "files of the user stay"


def test_no_teacher_has_weights_in_memory_while_the_student_trains(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The first one went to the memory of the host, where the training of a large student needs it."""
    another_teacher(root)
    loaded: list[Loaded] = []
    had_weights: list[bool] = []

    def load(*parts: Any) -> Loaded:
        loaded.append(load_teacher(*parts))
        return loaded[-1]

    def trained(*parts: Any, **more: Any) -> Any:
        had_weights.extend(not teacher.is_weightless for teacher in loaded)
        return train(*parts, **more)

    monkeypatch.setattr(prepare, "load_teacher", load)
    monkeypatch.setattr(further_teachers, "load_teacher", load)
    monkeypatch.setattr(train_student, "train", trained)

    run_here(teachers_order(root), root)

    assert had_weights == [False, False]


def test_a_teacher_that_is_added_computes_alone(root: Path, caplog: pytest.LogCaptureFixture):
    another_teacher(root)
    run_here(teachers_order(root, weights=(1.0,)), root, attempt="one")
    assert len(list(root.glob("store/logits/*"))) == 1
    caplog.clear()
    caplog.set_level("INFO")

    order = teachers_order(root)
    run_here(order, root, attempt="two")

    passes = [record.message for record in caplog.records if record.message.startswith("teacher logits")]
    assert passes == ["teacher logits reused from the store", "teacher logits computed"]
    assert len(list(root.glob("store/logits/*"))) == 2
    run = manifest_of(root, order.digest).run
    assert not run.logits_reused
    assert sorted(run.logits or []) == sorted(path.name for path in root.glob("store/logits/*"))


def test_a_stop_and_several_processes_change_nothing(root: Path):
    another_teacher(root)
    whole = run_here(teachers_order(root, "whole"), root, attempt="whole")
    order = teachers_order(root)
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="first", signals=StopAfter(14))
    assert stop.value.step > 0

    resumed = run_here(order, root, attempt="second")
    ranks = start_stage(Attempt(teachers_order(root, "ranks"), "ranks"), root, 2).answers()

    assert weights_of(resumed) == weights_of(whole)
    assert manifest_of(root, order.digest).run.resumed
    assert distance(ranks[0], whole) < 1e-5


def test_a_further_teacher_at_chance_is_refused_by_its_name(root: Path):
    save_bert(root / "other", seed=9)

    with pytest.raises(GateNotMet) as error:
        run_here(teachers_order(root), root)

    assert str(error.value).startswith(f"teacher file://{root}/other: ")
    assert "fine-tune it on the task first" in str(error.value)


def test_a_damaged_teacher_is_named_and_the_operator_may_run_each_of_them_again(root: Path):
    student = {"model": f"file://{root}/teacher"}
    stages = [
        {"name": "first", "student": student},
        {"name": "second", "student": student},
        {"name": "third", "student": student, "teachers": [{"stage": "second"}, {"stage": "first"}]},
    ]
    orders = [an_order(root, stage=number, stages=stages, training={"epochs": 1}) for number in range(3)]
    first, _ = (run_here(order, root, attempt=order.stage) for order in orders[:2])
    shutil.rmtree(root / f"store/stages/{orders[0].digest}")

    with pytest.raises(CheckpointCorrupt) as error:
        run_here(orders[2], root, attempt="third")

    assert first.digest in str(error.value)
    assert "stage first, which teaches this one, is no longer committed" in str(error.value)
