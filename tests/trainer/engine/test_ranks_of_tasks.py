"""Each task type trains to the same weights on one process and on two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.distillchain import quickstart_material
from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed
from distillchain_api.wire.work_order import WorkOrder
from trainer import language_parts, tagging_parts
from trainer.parts import run_here, weights_of
from trainer.rank_parts import Attempt, start_stage
from trainer.rated_sentences import example_on

pytestmark = pytest.mark.models

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# An odd number of rows, so that shares differ in size. Few steps: over hundreds of them, a training of random weights
# makes a difference by rounding 10,000 times as large.
TRAINING = {"epochs": 1, "batchSize": 31, "learningRate": 0.001}

Document = dict[str, Any]


def rated(root: Path, name: str) -> Document:
    """A chain of examples/rated-sentences whose models are BERT-tiny without dropout."""
    document = example_on(root, name, train=501, validation=288)
    shutil.copytree(quickstart_material() / "models/bert-tiny", root / "start")
    config = root / "start/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | NO_DROPOUT))
    start = f"file://{root}/start"
    document["spec"]["teacher"] = {"model": start, "fineTune": {"epochs": 10, "learningRate": 0.001}}
    # A tenth of the others' learning rate: 20 steps of 4.4M weights magnify rounding more than those of small models.
    training = {"learningRate": 0.0001}
    document["spec"]["stages"] = [{"name": "tiny", "student": {"model": start}, "training": training}]
    return document


def labels(root: Path) -> Document:
    return rated(root, "labels.yaml")


def numbers(root: Path) -> Document:
    return rated(root, "rating.yaml")


def tags(root: Path) -> Document:
    """Teacher and student cut words into other tokens."""
    tagging_parts.write_models(root)
    student = tagging_parts.a_student(root)
    student["architecture"]["config"] |= NO_DROPOUT
    tune = {"epochs": 12, "batchSize": 8, "learningRate": 0.01}
    teacher = {"model": f"file://{root}/start", "fineTune": tune}
    return tagging_parts.a_chain_document(root, student=student, teacher=teacher)


def language(root: Path) -> Document:
    """Llamas, which have no dropout."""
    language_parts.save_llama(root / "start")
    language_parts.write_sentences(root / "data")
    config = {**language_parts.SMALL_LLAMA, "num_hidden_layers": 1}
    student = {"architecture": {"modelType": "llama", "config": config}, "tokenizer": f"file://{root}/start"}
    return language_parts.a_chain_document(
        root,
        task=language_parts.a_task_document(root / "data"),
        teacher={"model": f"file://{root}/start", "fineTune": {"epochs": 3, "learningRate": 0.02}},
        template={},
        stages=[{"name": "small", "student": student}],
    )


def order_of(document: Document, store: Path, stage: int) -> WorkOrder:
    spec = document["spec"]
    template = {**spec.get("template", {}), "training": TRAINING}
    spec = {**spec, "storage": {"uri": f"file://{store}"}, "template": template}
    return build_plan(parse_chain({**document, "spec": spec})).stages[stage].work_order


def distances(one: Committed, other: Committed) -> dict[str, float]:
    """By tensor the largest difference of two weights, without those that no loss depends on."""
    from safetensors.torch import load

    ours, theirs = load(weights_of(one)), load(weights_of(other))
    # The bias of keys adds the same to all scores of a query. Its gradient is rounding alone, which AdamW divides by its
    # own size.
    names = [name for name in ours if not name.endswith(("key.bias", "k_proj.bias"))]
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in names}


@pytest.mark.parametrize("write", [labels, numbers, tags, language])
def test_two_processes_give_the_weights_of_one(tmp_path: Path, write: Callable[[Path], Document]):
    document, alone, two = write(tmp_path), tmp_path / "alone", tmp_path / "two"
    run_here(order_of(document, alone, 0), tmp_path, attempt="teacher")
    shutil.copytree(alone, two)
    expected = run_here(order_of(document, alone, 1), tmp_path, attempt="alone")

    answers = start_stage(Attempt(order_of(document, two, 1), "two"), tmp_path, 2).answers()

    assert {name: apart for name, apart in distances(answers[0], expected).items() if apart > 1e-5} == {}
    assert answers[0].student.metrics.validation == pytest.approx(expected.student.metrics.validation, abs=1e-3)
    assert len({answer.to_json() for answer in answers}) == 1
