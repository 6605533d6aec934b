"""Stages that are refused when their models are loaded or measured: nothing is committed, nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distillchain_api.failures import StageError
from distillchain_trainer.errors import CheckpointInvalid, GateNotMet, LabelMismatch, TrainingDiverged
from trainer.checkpoint_parts import LORA, edit_config, edit_weights
from trainer.models.test_bad_checkpoints import HEAD, MERGE
from trainer.parts import an_order, run_here, save_bert, save_tokenizer

pytestmark = pytest.mark.models


def _refusal(order: Any, root: Path) -> StageError:
    with pytest.raises(StageError) as failure:
        run_here(order, root)
    assert not list((root / "store").glob("stages/*/manifest.json")), "nothing is committed"
    assert not list((root / "store").glob("stages/*/attempts")), "nothing is half-written"
    return failure.value


def test_a_stage_with_a_bad_student_writes_nothing(root: Path):
    LORA(save_bert(root / "start"))

    error = _refusal(an_order(root, student={"model": f"file://{root}/start"}), root)

    assert isinstance(error, CheckpointInvalid)
    assert str(error) == f"spec.stages[0].student.model: file://{root}/start has adapter_config.json: {MERGE}"


def test_a_teacher_under_its_gate_is_refused_before_training(root: Path):
    save_bert(root / "weak", seed=3)
    order = an_order(root, teacher={"model": f"file://{root}/weak", "gate": {"minMetric": 0.9}})

    error = _refusal(order, root)

    assert isinstance(error, GateNotMet)
    assert str(error) == (
        f"teacher file://{root}/weak: accuracy 0.50 is below spec.teacher.gate.minMetric 0.90; "
        "fine-tune it (spec.teacher.fineTune) or lower the gate"
    )


def test_a_teacher_without_a_gate_must_beat_chance(root: Path):
    save_bert(root / "weak", seed=3)

    error = _refusal(an_order(root, teacher={"model": f"file://{root}/weak"}), root)

    assert isinstance(error, GateNotMet)
    assert str(error) == (
        f"teacher file://{root}/weak: accuracy 0.50 on 60 validation rows could be luck: always naming the most "
        "frequent class reaches 0.50, and so few rows need more than 0.6062; fine-tune it (spec.teacher.fineTune) or "
        "use more validation rows"
    )


def test_unnamed_classes_that_are_turned_round_are_found_by_measuring(root: Path):
    edit_config(id2label={"0": "LABEL_0", "1": "LABEL_1"})(root / "teacher")
    edit_weights(lambda weights: weights.update({name: weights[name].flip(0) for name in HEAD}))(root / "teacher")

    error = _refusal(an_order(root), root)

    assert isinstance(error, LabelMismatch)
    assert "with LABEL_0, LABEL_1, ... taken as negative, positive, but" in str(error)
    assert str(error).endswith(
        "as positive, negative: its classes are probably in that order; write their names into id2label of its config.json"
    )


def test_names_that_are_exchanged_are_found_by_measuring(root: Path):
    edit_weights(lambda weights: weights.update({name: weights[name].flip(0) for name in HEAD}))(root / "teacher")

    error = _refusal(an_order(root), root)

    assert isinstance(error, LabelMismatch)
    assert "if what it calls negative, positive stands for positive, negative: the names in id2label" in str(error)


def test_a_loss_that_is_no_number_ends_training_at_once(root: Path):
    """Texts without a certain word have finite answers, so the start itself is not refused."""
    word = save_tokenizer(root / "words").convert_tokens_to_ids("bleak")
    start = save_bert(root / "huge", labels=None)
    edit_weights(lambda weights: weights["embeddings.word_embeddings.weight"][word].fill_(3e38))(start)

    error = _refusal(an_order(root, student={"model": f"file://{start}"}), root)

    assert isinstance(error, TrainingDiverged)
    assert str(error) == (
        "the loss became nan at step 1; lower training.learningRate, add warmupRatio, or use precision float32"
    )
