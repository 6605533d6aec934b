"""Stages with a loss on hidden states, start to end: the teacher runs beside the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.errors import CheckpointInvalid, StopRequested
from trainer.parts import (
    SMALL_BERT,
    StopAfter,
    an_order,
    manifest_of,
    new_student,
    run_here,
    save_bert,
    save_tokenizer,
    weights_of,
)
from trainer.rank_parts import Attempt, distance, start_stage
from trainer.tagging_parts import TAGGER, write_models
from trainer.tagging_parts import an_order as a_tagging_order

pytestmark = pytest.mark.models

MSE = {"objective": "HiddenMSE", "weight": 0.5}


def an_order_in(root: Path, store: str = "store", *, dropout: float = 0.0, **distillation: Any) -> WorkOrder:
    """A stage with a student half as wide as its teacher."""
    return an_order(
        root,
        student=new_student(root, dropout=dropout, hidden_size=8),
        storage={"uri": f"file://{root}/{store}"},
        distillation={"hidden": MSE, **distillation},
    )


@pytest.mark.parametrize(
    "hidden",
    [MSE, {"objective": "ValueRelation", "relations": ["Query", "Value"]}],
    ids=["HiddenMSE", "ValueRelation"],
)
def test_a_student_learns_from_hidden_states_and_its_checkpoint_has_nothing_of_them(root: Path, hidden: dict[str, Any]):
    order = an_order_in(root, hidden=hidden, alpha=0.5)

    answer = run_here(order, root)

    plain = run_here(an_order_in(root, "plain", hidden=None, alpha=0.5), root, attempt="plain")
    assert distance(answer, plain) > 1e-3
    one, other = ({*load_file(Path(it.checkpoint[7:]) / "model.safetensors")} for it in (answer, plain))
    assert one == other
    stated = manifest_of(root, order.digest).recipe["distillation"]["hidden"]
    assert stated["objective"] == hidden["objective"]


def test_hidden_states_and_labels_need_no_logits_of_the_teacher(root: Path):
    run_here(an_order_in(root, alpha=0), root)

    assert not list(root.glob("store/logits/*/*"))


def test_a_resumed_stage_gives_the_same_bytes(root: Path):
    whole = run_here(an_order_in(root, "whole", dropout=0.2), root, attempt="whole")
    order = an_order_in(root, dropout=0.2)

    with pytest.raises(StopRequested) as stopped:
        run_here(order, root, attempt="stopped", signals=StopAfter(15))
    resumed = run_here(order, root, attempt="resumed")

    assert 0 < stopped.value.step < 20
    assert manifest_of(root, order.digest).run.resumed
    assert weights_of(resumed) == weights_of(whole)


def test_two_processes_give_the_weights_of_one(root: Path):
    alone = run_here(an_order_in(root, "alone"), root)

    answers = start_stage(Attempt(an_order_in(root), "a"), root, 2).answers()

    assert distance(answers[0], alone) < 1e-5


def test_a_student_with_another_tokenizer_is_refused_before_anything_is_computed(root: Path):
    save_bert(root / "other")
    tokenizer = save_tokenizer(root / "other")
    tokenizer.add_tokens(["very good"])
    tokenizer.save_pretrained(root / "other")
    student = {"architecture": {"modelType": "bert", "config": SMALL_BERT}, "tokenizer": f"file://{root}/other"}
    train = root / "data/train.tsv"
    train.write_text(train.read_text() + "a very good film\t1\n")

    with pytest.raises(CheckpointInvalid) as failure:
        run_here(an_order(root, student=student, distillation={"hidden": MSE}), root)

    assert str(failure.value) == (
        f"spec.stages[0].distillation.hidden: student architecture:bert and teacher file://{root}/teacher cut the "
        "training texts into different tokens, expected the same ones, because hidden states are compared token by "
        "token; give the student the teacher's tokenizer (student.tokenizer), or remove hidden"
    )
    assert not list(root.glob("store/*"))


def test_a_tagger_learns_from_hidden_states_and_from_a_loss_for_each_word(tmp_path: Path):
    root = write_models(tmp_path)
    architecture = {"modelType": "bert", "config": {**TAGGER, "hidden_size": 24}}
    orders = [
        a_tagging_order(
            root,
            stage=stage,
            student={"architecture": architecture, "tokenizer": f"file://{root}/start"},
            training={"labelSmoothing": 0.1, "classWeights": {"O": 0.5}},
            distillation={"objective": "Decoupled", "parameters": {"nonTargetWeight": 2}, "alpha": 0.9, "hidden": MSE},
        )
        for stage in (0, 1)
    ]

    teacher, student = (run_here(order, root, attempt=order.stage) for order in orders)

    assert teacher.student.metrics.validation["entityF1"] > 0.6
    assert student.student.metrics.validation["entityF1"] > 0.6


@pytest.mark.shared
@pytest.mark.parametrize("objective", ["HiddenMSE", "ValueRelation"])
def test_minilm_teaches_bert_tiny_by_its_hidden_states(shared: Path, root: Path, objective: str):
    """Real models of unlike widths, heads and numbers of layers: 384, 12 and 6 against 128, 2 and 2."""
    models = shared / "models"
    order = an_order(
        root,
        teacher={"model": f"file://{models}/minilm-l6-sst2-lr1e-4-2ep"},
        student={"model": f"file://{models}/bert-tiny-splade-sst2-3ep"},
        training={"epochs": 1, "learningRate": 1e-4},
        distillation={"hidden": {"objective": objective}},
    )

    answer = run_here(order, root)

    assert answer.student.metrics.validation["accuracy"] > 0.6
    assert manifest_of(root, order.digest).run.final_loss > 0
