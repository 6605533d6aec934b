"""Runs docs/serving.md on copies of checkpoints and of ONNX exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from distillchain_api.graph import build_plan
from distillchain_api.resource.spec import parse_chain
from distillchain_api.wire.answer import Committed
from docs.catalogue import Scene, of
from docs.shell import environment, run_block
from trainer.language_parts import a_chain_document, a_task_document, save_llama, write_sentences
from trainer.parts import SMALL_BERT, an_order, run_here, save_bert, write_data

pytestmark = pytest.mark.models


def test_serving_without_our_package(tmp_path: Path) -> None:
    folder = _served(tmp_path)
    variables = environment(tmp_path, HF_HUB_OFFLINE="1")

    outputs = [run_block(block.values[0], folder, variables=variables).stdout for block in of(Scene.SERVING)]

    assert outputs[0] == "the checkpoint is as it was committed\n"
    assert ["'label': 'positive'" in output for output in outputs[1:3]] == [True, True]
    assert outputs[3] == "['positive', 'negative']\n"
    assert [line.split()[:1] for line in outputs[4].splitlines()] == [["Wednesday"], []]


def _served(root: Path) -> Path:
    """A fine-tuned BERT and its bert-hash student with an export, copied as the page says."""
    write_data(root / "data")
    save_bert(root / "start", labels=None)
    fine_tuned = run_here(an_order(root, teacher={"model": f"file://{root}/start", "fineTune": {"epochs": 4}}), root)
    shutil.copytree(fine_tuned.checkpoint[7:], root / "teacher")
    architecture = {"modelType": "bert-hash", "config": {**SMALL_BERT, "projections": 4}}
    order = an_order(
        root,
        student={"architecture": architecture, "tokenizer": f"file://{root}/teacher"},
        training={"epochs": 8},
        template={"export": {"onnx": {"quantize": "int8"}}},
    )
    student = run_here(order, root, attempt="student")
    folder = root / "served"
    shutil.copytree(root / "teacher", folder / "checkpoint")
    shutil.copytree(student.checkpoint[7:], folder / "bert-hash-checkpoint")
    shutil.copytree(Path(student.exports[0].uri[7:]).parent, folder / "onnx")
    texts = root / "texts"
    texts.mkdir()
    language = a_language_model(texts)
    shutil.copytree(Path(language.exports[0].uri[7:]).parent, folder / "language-onnx")
    # As of a chat model: a token at which it stops, August, is not in config.json.
    august = Tokenizer.from_file(str(folder / "language-onnx/tokenizer.json")).encode("August").ids[-1]
    stops = folder / "language-onnx/generation_config.json"
    end = json.loads(stops.read_text())["eos_token_id"]
    stops.write_text(json.dumps({"eos_token_id": [august, end]}))
    shutil.copy(root / f"store/stages/{fine_tuned.digest}/manifest.json", folder)
    return folder


def a_language_model(root: Path) -> Committed:
    """A Llama that knows the order of days and months, with an export."""
    save_llama(root / "start")
    write_sentences(root / "data")
    document = a_chain_document(
        root,
        task=a_task_document(root / "data"),
        teacher={"model": f"file://{root}/start", "fineTune": {}, "export": {"onnx": {}}},
        template={"training": {"epochs": 5, "batchSize": 8, "learningRate": 0.02}},
        stages=[{"name": "small", "student": {"fromTeacher": {"layers": 1}}}],
    )
    teacher, _ = build_plan(parse_chain(document)).stages
    return run_here(teacher.work_order, root)
