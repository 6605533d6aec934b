"""Checkpoints and models that are refused, each with the sentence a person needs, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillchain_api.failures import StageError
from distillchain_trainer.errors import CheckpointInvalid, GateNotMet, LabelMismatch, TrainingDiverged
from trainer.parts import SMALL_BERT, an_order, read_json, run_here, save_bert, save_tokenizer

pytestmark = pytest.mark.models


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(read_json(path) | changes))

    return edit


def _drop(*names: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return drop


def _half(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _without_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _more_words(folder: Path) -> None:
    save_tokenizer(folder, more_words=9)


def _not_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _unreadable(folder: Path) -> None:
    """A folder in its place stands in for a file of another user: root may read everything."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


def _nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def _headless(folder: Path) -> None:
    shutil.rmtree(folder)
    save_bert(folder, labels=None)


def _three(folder: Path) -> None:
    shutil.rmtree(folder)
    save_bert(folder, labels=["bad", "so-so", "good"])


BAD_TEACHERS = [
    pytest.param(_pickled, CheckpointInvalid, "spec.teacher.model: {t} has only pickled weights (pytorch_model.bin), which can run code when loaded; save it with save_pretrained(safe_serialization=True) or name a revision with safetensors", id="pickled weights"),
    pytest.param(_edit_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), CheckpointInvalid, "spec.teacher.model: {t} wants to run code of its own (auto_map in config.json), which is never done; use an architecture of transformers or bert_hash", id="remote code"),
    pytest.param(_edit_config(model_type="brt"), CheckpointInvalid, 'spec.teacher.model: {t} is of model_type "brt", which is not known here; use an architecture of transformers or bert_hash', id="unknown architecture"),
    pytest.param(_drop("tokenizer.json"), CheckpointInvalid, "spec.teacher.model: {t} has no tokenizer; put the tokenizer.json (or vocab.txt) it was trained with beside it", id="no tokenizer"),
    pytest.param(_drop("config.json"), CheckpointInvalid, "spec.teacher.model: {t} has no config.json; expected a checkpoint in Hugging Face format", id="no config"),
    pytest.param(_drop("model.safetensors"), CheckpointInvalid, "spec.teacher.model: {t} has no weights; expected model.safetensors", id="no weights"),
    pytest.param(_nothing, CheckpointInvalid, "spec.teacher.model: {t} does not exist; expected a folder with config.json and weights", id="no such folder"),
    pytest.param(_half, CheckpointInvalid, "spec.teacher.model: the weights of {t} cannot be loaded: Error while deserializing header: incomplete metadata, file not fully covered; copy the checkpoint again, and see that config.json and weights belong together", id="weights cut short"),
    pytest.param(_without_a_layer, CheckpointInvalid, "spec.teacher.model: {t} lacks weights of its own architecture (bert.encoder.layer.0.output.dense.weight); copy the checkpoint again", id="a tensor missing"),
    pytest.param(_more_words, CheckpointInvalid, "spec.teacher.model: the tokenizer has 47 words, the model {t} has embeddings for 38; use the tokenizer it was trained with", id="another tokenizer"),
    pytest.param(_not_numbers, CheckpointInvalid, "spec.teacher.model: {t}: its outputs on validation are not numbers (NaN or infinite); copy it again, or use precision float32", id="NaN"),
    pytest.param(_unreadable, CheckpointInvalid, "spec.teacher.model: {t} cannot be read (Is a directory); name a place that the trainer's user may read", id="a file that may not be read"),
    pytest.param(_headless, CheckpointInvalid, "spec.teacher.model: {t} has no classifier head (BertModel in config.json); fine-tune it on the task first (spec.teacher.fineTune)", id="only pretrained"),
    pytest.param(_three, LabelMismatch, "teacher {t}: its head has 3 classes (bad, so-so, good), spec.task.labels has 2 (negative, positive); use a checkpoint of this task, or one without a classifier head", id="another number of classes"),
    pytest.param(_edit_config(id2label={"0": "bad", "1": "good"}), LabelMismatch, "teacher {t}: its classes are bad, good, spec.task.labels are negative, positive; name the labels as the checkpoint's id2label does, or use a checkpoint of this task", id="other class names"),
]  # fmt: skip


def _refusal(order: Any, root: Path) -> StageError:
    with pytest.raises(StageError) as failure:
        run_here(order, root)
    assert not list((root / "store").glob("stages/*/manifest.json")), "nothing is committed"
    assert not list((root / "store").glob("stages/*/attempts")), "nothing is half-written"
    return failure.value


@pytest.mark.parametrize("spoil, kind, want", BAD_TEACHERS)
def test_a_bad_teacher_is_refused(root: Path, spoil: Callable[[Path], None], kind: type[StageError], want: str):
    spoil(root / "teacher")

    error = _refusal(an_order(root), root)

    assert str(error) == want.format(t=f"file://{root}/teacher")
    assert type(error) is kind


@pytest.mark.parametrize(
    "spoil, want",
    [
        pytest.param(_pickled, "spec.stages[0].student.model: {s} has only pickled weights (pytorch_model.bin), which can run code when loaded; save it with save_pretrained(safe_serialization=True) or name a revision with safetensors", id="pickled weights"),
        pytest.param(_edit_config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}), "spec.stages[0].student.model: {s} wants to run code of its own (auto_map in config.json), which is never done; use an architecture of transformers or bert_hash", id="remote code"),
        pytest.param(_drop("tokenizer.json"), "spec.stages[0].student.model: {s} has no tokenizer; put the tokenizer.json (or vocab.txt) it was trained with beside it", id="no tokenizer"),
    ],
)  # fmt: skip
def test_a_bad_start_of_a_student_is_refused(root: Path, spoil: Callable[[Path], None], want: str):
    spoil(save_bert(root / "start"))

    error = _refusal(an_order(root, student={"model": f"file://{root}/start"}), root)

    assert isinstance(error, CheckpointInvalid)
    assert str(error) == want.format(s=f"file://{root}/start")


@pytest.mark.parametrize(
    "config, want",
    [
        pytest.param({"hiden_size": 8}, "spec.stages[0].student.architecture.config.hiden_size: bert has no such field; did you mean hidden_size?", id="misspelt field"),
        pytest.param({"hidden_size": 10, "num_attention_heads": 3}, "spec.stages[0].student.architecture: bert with this config cannot be built: The hidden size (10) is not a multiple of the number of attention heads (3)", id="heads that do not divide"),
        pytest.param({"max_position_embeddings": 8}, "spec.task.maxLength: got 16, but bert reads at most 8 tokens; lower it", id="too few positions"),
        pytest.param({"vocab_size": 7}, "spec.stages[0].student: the tokenizer has 38 words, the model bert has embeddings for 7; use the tokenizer it was trained with", id="too few words"),
        pytest.param({"hidden_size": "eight"}, None, id="text where a number belongs"),
    ],
)  # fmt: skip
def test_a_bad_architecture_is_refused(root: Path, config: dict[str, Any], want: str | None):
    student = {
        "architecture": {"modelType": "bert", "config": {**SMALL_BERT, **config}},
        "tokenizer": f"file://{root}/teacher",
    }

    error = _refusal(an_order(root, student=student), root)

    assert isinstance(error, CheckpointInvalid)
    if want:
        assert str(error) == want
    else:
        assert str(error).startswith("spec.stages[0].student.architecture")


def test_an_unknown_model_type_is_answered_with_the_nearest(root: Path):
    student = {"architecture": {"modelType": "bert-hsh"}, "tokenizer": f"file://{root}/teacher"}

    error = _refusal(an_order(root, student=student), root)

    want = "spec.stages[0].student.architecture.modelType: got bert-hsh; did you mean bert_hash?"
    assert str(error) == want


def test_a_student_with_another_number_of_classes_is_refused(root: Path):
    save_bert(root / "three", labels=["bad", "so-so", "good"])

    error = _refusal(an_order(root, student={"model": f"file://{root}/three"}), root)

    assert isinstance(error, LabelMismatch)
    assert str(error).startswith(f"student file://{root}/three: its head has 3 classes (bad, so-so, good), ")


def test_a_teacher_under_its_gate_is_refused_before_training(root: Path):
    save_bert(root / "weak", seed=3)
    order = an_order(root, teacher={"model": f"file://{root}/weak", "gate": {"minMetric": 0.9}})

    error = _refusal(order, root)

    assert isinstance(error, GateNotMet)
    assert str(error) == (
        f"teacher file://{root}/weak: accuracy 0.50 is under spec.teacher.gate.minMetric 0.90; "
        "fine-tune it (spec.teacher.fineTune) or lower the gate"
    )


def test_a_teacher_without_a_gate_must_beat_chance(root: Path):
    save_bert(root / "weak", seed=3)

    error = _refusal(an_order(root, teacher={"model": f"file://{root}/weak"}), root)

    assert isinstance(error, GateNotMet)
    assert str(error) == (
        f"teacher file://{root}/weak: accuracy 0.50 on 60 validation rows is not above chance (0.50 for the most "
        "frequent class, 0.6062 with a margin for so few rows); fine-tune it (spec.teacher.fineTune) or use more "
        "validation rows"
    )


def test_unnamed_classes_that_are_turned_round_are_found_by_measuring(root: Path):
    _edit_config(id2label={"0": "LABEL_0", "1": "LABEL_1"})(root / "teacher")
    weights = load_file(root / "teacher/model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, root / "teacher/model.safetensors", metadata={"format": "pt"})

    error = _refusal(an_order(root), root)

    assert isinstance(error, LabelMismatch)
    assert "with LABEL_0.. taken as negative, positive, but" in str(error)
    assert str(error).endswith(
        "as positive, negative: its classes are probably in that order; write their names into id2label of its config.json"
    )


def test_a_loss_that_is_no_number_ends_training_at_once(root: Path):
    error = _refusal(
        an_order(
            root,
            training={"learningRate": 1.0, "maxGradNorm": 0.0, "epochs": 40},
            student={"model": f"file://{_exploding(root)}"},
        ),
        root,
    )

    assert isinstance(error, TrainingDiverged)
    assert str(error) == (
        "the loss became nan at step 1; lower training.learningRate, add warmupRatio, or use precision float32"
    )


def _exploding(root: Path) -> Path:
    """Weights so large that the first forward pass overflows."""
    folder = save_bert(root / "huge", labels=None)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: w * 3e38 if "dense.weight" in n else w for n, w in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    return folder
