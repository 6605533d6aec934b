"""Relative URIs, --storage and --set: what they change, and which field or option a fault names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.parts import distillchain_here, faults_of, write_chain
from distillchain_cli.arguments.chain_files import read_chain

# --- relative URIs


def test_relative_uris_in_a_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "chains").mkdir()
    write_chain(tmp_path / "chains", teacher={"model": "file://../models/teacher"})
    monkeypatch.chdir(tmp_path)

    chain = read_chain("chains/chain.yaml")

    assert chain.spec.teacher.model == f"file://{tmp_path}/models/teacher"
    assert chain.spec.storage.uri == f"file://{tmp_path}/chains/store"


def test_a_relative_uri_in_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"donn\xe9es")
    folder.mkdir()
    write_chain(folder)

    done = distillchain_here("validate", "chain.yaml", cwd=folder)

    assert done.returncode == 2
    assert "donn\\udce9es/store': this name is not UTF-8; rename the folder" in done.stderr


def test_relative_uris_in_options_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "chains").mkdir()
    write_chain(tmp_path / "chains")
    monkeypatch.chdir(tmp_path)

    chain = read_chain(
        "chains/chain.yaml", overrides=["spec.teacher.model=file://./mine"], storage="file://./elsewhere"
    )

    assert chain.spec.teacher.model == f"file://{tmp_path}/mine"
    assert chain.spec.storage.uri == f"file://{tmp_path}/elsewhere"


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("file://ag_raw", "write file://./ag_raw for a path relative to the folder of this file"),
        ("../ag_raw", "write file://../ag_raw for a path relative to the folder of this file"),
        ("/data/ag_raw", "write file:///data/ag_raw"),
        ("file:/data/ag_raw", "write file:///data/ag_raw"),
        ("~/ag_raw", f"write file://{Path.home()}/ag_raw"),
        (
            "org/bert",
            "write hf://org/bert, or s3://org/bert, or file://./org/bert for a path relative to the folder of this file",
        ),
        ("bert", "write hf://bert, or s3://bert, or file://./bert for a path relative to the folder of this file"),
        ("a/b/c/d", "write file://./a/b/c/d for a path relative to the folder of this file"),
        ("data/b/c", "write s3://data/b/c, or file://./data/b/c for a path relative to the folder of this file"),
        ("S3://data/ag_raw", "write s3://data/ag_raw"),
        ("s3:data/ag_raw", "write s3://data/ag_raw"),
        ("hf:org/bert", "write hf://org/bert"),
        ("https://huggingface.co/org/bert", "write hf://org/bert"),
        ("https://huggingface.co/bert/tree/main", "write hf://bert"),
        ("file:///my models/bert", "rename the folder, or name a link to it without spaces (ln -s)"),
        ("https://example.com/org/bert", "https:// cannot be used here"),
        ("s3://b/ag_raw", "a bucket's name has 3 to 63 lowercase letters, digits, dots and hyphens"),
        ("s3://Data/ag_raw", "a bucket's name has 3 to 63 lowercase letters, digits, dots and hyphens"),
        ("s3://data//ag_raw", "without spaces, '//', '/./' and '/../'"),
    ],
)
def test_a_path_without_the_form_of_a_uri_gets_the_form_as_a_remedy(tmp_path: Path, uri: str, hint: str):
    path = write_chain(tmp_path, teacher={"model": uri})

    (message,) = faults_of(str(path))

    assert message == (
        f'spec.teacher.model: got "{uri}", expected hf://repo[@revision], s3://bucket/prefix or '
        f"file:///absolute/path; {hint}"
    )


# --- --storage and --set


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("models/x", "write s3://models/x, or file://./models/x for a path relative to the current folder"),
        ("./x", "write file://./x for a path relative to the current folder"),
        ("s3:/models/x", "write s3://models/x"),
        ("http://minio:9000/models", "the address of a server belongs into spec.storage.endpointUrl"),
        ("gs://models", "gs:// cannot be used here"),
        ("hf://org/bert", "hf:// cannot be used here"),
        ("s3://models/a b", "without spaces, '//', '/./' and '/../'"),
    ],
)
def test_a_storage_option_without_the_form_of_a_uri_gets_the_form_as_a_remedy(tmp_path: Path, uri: str, hint: str):
    (message,) = faults_of(str(write_chain(tmp_path)), storage=uri)

    assert message == (f'--storage: got "{uri}", expected s3://bucket/prefix or file:///absolute/path; {hint}')


def test_another_storage_drops_endpoint_and_credentials_of_the_first(tmp_path: Path):
    path = write_chain(tmp_path, storage={"uri": "s3://b/p", "endpointUrl": "http://s3", "secretRef": {"name": "s"}})

    chain = read_chain(str(path), storage="s3://other/place")

    assert chain.spec.storage.to_document() == {"uri": "s3://other/place"}


@pytest.mark.parametrize(
    "override, is_set",
    [
        pytest.param("spec.stages[1].training.epochs=7", lambda s: s.stages[1].training.epochs == 7, id="by number"),
        pytest.param("spec.stages[tiny].training.epochs=7", lambda s: s.stages[1].training.epochs == 7, id="by name"),
        pytest.param(
            "spec.stages[0].training.learningRate=1e-3",
            lambda s: s.stages[0].training.learning_rate == 0.001,
            id="1e-3 is a number",
        ),
        pytest.param("spec.teacher.fineTune={epochs: 2}", lambda s: s.teacher.fine_tune.epochs == 2, id="a mapping"),
        pytest.param("spec.teacher.gate=null", lambda s: s.teacher.gate is None, id="null removes a field"),
        pytest.param(
            "spec.template.resources.limits[nvidia.com/gpu]=1",
            lambda s: s.template.resources.to_document() == {"limits": {"nvidia.com/gpu": 1}},
            id="a key with dots",
        ),
        pytest.param("spec.task.labels=[no way, fine]", lambda s: s.task.labels == ["no way", "fine"], id="a list"),
        pytest.param(
            "spec.task.dataset.uri=s3://data/a=b",
            lambda s: s.task.dataset.uri == "s3://data/a=b",
            id="only the first = divides",
        ),
    ],
)
def test_set_replaces_a_field(tmp_path: Path, override: str, is_set: Callable[[Any], bool]):
    path = write_chain(tmp_path)

    chain = read_chain(str(path), overrides=[override])

    assert is_set(chain.spec)


def test_the_last_of_two_equal_paths_wins(tmp_path: Path):
    path = write_chain(tmp_path)

    chain = read_chain(str(path), overrides=["spec.task.maxLength=10", "spec.task.maxLength=11"])

    assert chain.spec.task.max_length == 11


@pytest.mark.parametrize(
    "override, want",
    [
        pytest.param("spec.template.training.epoch=1", "unknown field; did you mean epochs?", id="unknown field"),
        pytest.param("spec.task.maxLength=2", "got 2, expected a number of tokens from 4 to 8192", id="a bad value"),
        pytest.param(
            "spec.stages[tiny].training={epochs: x}",
            'spec.stages[1].training.epochs: got "x", expected a whole number from 1 to 1000000',
            id="a bad value inside a mapping",
        ),
        pytest.param(
            "spec.task", "has no '='; expected path=value, such as spec.template.training.epochs=1", id="no value"
        ),
        pytest.param(
            "task.maxLength=8",
            "expected a path under spec, or metadata.name, such as spec.template.training.epochs=1",
            id="not under spec",
        ),
        pytest.param(
            "spec.stages[huge].gate=1",
            'spec.stages: got "huge", expected a number from 0 to 1 or one of mini, tiny',
            id="no such stage",
        ),
        pytest.param(
            "spec.stages[2].gate=1",
            'spec.stages: got "2", expected a number from 0 to 1 or one of mini, tiny',
            id="after the last",
        ),
        pytest.param(
            "spec.task.type.x=1",
            "spec.task.type is 'TextClassification'; expected a mapping or a list there",
            id="below a text",
        ),
        pytest.param(
            "spec.task..x=1", "cannot read the path from '..x' on; expected names with '.' and '[...]'", id="two dots"
        ),
        pytest.param(
            "spec.task.labels=[a, b",
            "the value is not YAML (expected ',' or ']' for the bracket opened on line 1); quote it",
            id="broken YAML",
        ),
        pytest.param(
            "spec.template.training.learningRate=.inf",
            "the value is not YAML (got .inf, expected a number that JSON can hold)",
            id="infinity, which quotation marks do not help",
        ),
    ],
)
def test_a_fault_of_a_set_names_the_option(tmp_path: Path, override: str, want: str):
    path = write_chain(tmp_path)

    assert faults_of(str(path), overrides=[override]) == [f"--set {override}: {want}"]


def test_all_faults_are_reported_together_with_their_file_or_option(tmp_path: Path):
    write_chain(tmp_path, teacher={"model": "teacher"})
    options = ["--set", "spec.task.maxLength=x", "--set", "oops", "--storage", "gs://models"]

    done = distillchain_here("validate", "chain.yaml", *options, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(", expected")[0] for line in done.stderr.splitlines()] == [
        "--set oops: has no '='; expected path=value, such as spec.template.training.epochs=1",
        '--set spec.task.maxLength=x: got "x"',
        '--storage: got "gs://models"',
        'chain.yaml: spec.teacher.model: got "teacher"',
    ]
