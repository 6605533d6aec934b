"""The fields of CausalLM: one form of rows, and gates of metrics that are better when lower."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from bad_chains import GOOD
from distillchain_api.faults import BadDocument
from distillchain_api.resource.export import Export, OnnxExport
from distillchain_api.resource.spec import parse_chain
from distillchain_api.tasks.causal_lm import CausalLM


def a_document(dataset: dict[str, Any], **spec: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    source = {"uri": "s3://data/chats", "splits": {"train": "train.jsonl", "validation": "dev.jsonl"}}
    document["spec"]["task"] = {"type": "CausalLM", "dataset": source | dataset, **spec.pop("task", {})}
    document["spec"]["teacher"] = {"model": "hf://org/teacher@main"}
    document["spec"].update(spec)
    return document


@pytest.mark.parametrize(
    "dataset",
    [{"text": ["text"]}, {"prompt": "prompt", "completion": "completion"}, {"messages": "messages"}],
)
def test_each_form_of_rows_is_accepted(dataset: dict[str, Any]):
    task = parse_chain(a_document(dataset)).spec.task

    assert isinstance(task, CausalLM)
    assert task.top_k == 64


@pytest.mark.parametrize(
    "dataset, want",
    [
        ({}, "spec.task.dataset: got none, expected exactly one of text, prompt with completion, and messages"),
        (
            {"text": ["text"], "messages": "messages"},
            "spec.task.dataset: got text and messages, expected exactly one of text, prompt with completion, and messages",
        ),
        ({"prompt": "p"}, "spec.task.dataset.completion: missing, expected the names of both columns; add it"),
        (
            {"text": ["question", "answer"]},
            'spec.task.dataset.text: got ["question", "answer"], expected one column; for two columns write prompt and '
            "completion",
        ),
        (
            {"prompt": "p", "completion": "p"},
            'spec.task.dataset.completion: got "p", expected another column than prompt',
        ),
    ],
)
def test_two_forms_or_half_a_form_are_refused(dataset: dict[str, Any], want: str):
    with pytest.raises(BadDocument) as caught:
        parse_chain(a_document(dataset))

    assert want in str(caught.value)


@pytest.mark.parametrize(
    "dataset, train, want",
    [
        (
            {"messages": "messages"},
            "chats.csv.gz",
            'got "chats.csv.gz", which has only text; keep chats in jsonl or parquet, not as text',
        ),
        (
            {"text": ["text"]},
            "texts.txt",
            'got "texts.txt", unknown kind of file; expected csv, tsv or jsonl (also as .gz), or parquet',
        ),
    ],
)
def test_files_that_cannot_hold_the_rows_are_refused(dataset: dict[str, Any], train: str, want: str):
    files = {"uri": "s3://data/texts", "splits": {"train": train, "validation": "dev.jsonl"}}

    with pytest.raises(BadDocument) as caught:
        parse_chain(a_document({**dataset, **files}))

    assert str(caught.value) == f"spec.task.dataset.splits.train: {want}"


@pytest.mark.parametrize("train", ["chats.JSONL.gz", "chats.parquet", "a.b/train.jsonl"])
def test_files_of_chats_are_accepted(train: str):
    files = {"uri": "s3://data/texts", "splits": {"train": train, "validation": "dev.jsonl"}}

    assert parse_chain(a_document({"messages": "messages", **files})).spec.task.dataset.splits.train == train


def test_splits_of_the_hub_have_any_name():
    files = {"uri": "hf://org/chats", "splits": {"train": "train.csv", "validation": "test"}}

    assert parse_chain(a_document({"messages": "messages", **files}))


def test_a_minimum_of_a_cross_entropy_is_refused():
    stages = [{"name": "small", "student": {"model": "hf://org/small"}, "gate": {"minMetric": 2}}]

    with pytest.raises(BadDocument, match="tokenCrossEntropy is better when lower; write maxMetric"):
        parse_chain(a_document({"text": ["text"]}, stages=stages))


def test_the_agreement_with_the_teacher_is_no_metric_of_a_chain():
    with pytest.raises(BadDocument, match=r"spec\.task\.metric: got .teacherAgreement., expected"):
        parse_chain(a_document({"text": ["text"]}, task={"metric": "teacherAgreement"}))


@pytest.mark.parametrize("name, stages", [("chain", 2), ("lora", 1), ("two-teachers", 2)])
def test_the_examples_are_valid(repository: Path, name: str, stages: int):
    document = yaml.safe_load((repository / f"examples/llm/{name}.yaml").read_text())

    assert len(parse_chain(document).spec.stages) == stages


def test_students_can_be_exported():
    small = {"name": "small", "student": {"model": "hf://org/small"}}
    stages = [small, {**small, "name": "tiny", "export": {"onnx": {"quantize": "int8"}}}]

    spec = parse_chain(a_document({"text": ["text"]}, template={"export": {"onnx": {}}}, stages=stages)).spec

    assert spec.template.export.formats == ["onnx"]
    assert spec.stages[1].export == Export(onnx=OnnxExport(quantize="int8"))
