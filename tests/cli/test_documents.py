"""Chain files, what is said over them, and the sentences for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from chain_builders import a_document
from cli.parts import distillchain, distillchain_here, write_chain
from distillchain_api.faults import BadDocument
from distillchain_cli.documents import read_chain


def faults(*arguments: str, **options: object) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        read_chain(*arguments, **options)  # type: ignore[arg-type]  # tables pass what they like
    return [str(fault) for fault in caught.value.faults]


def test_relative_uris_are_read_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "chains").mkdir()
    write_chain(tmp_path / "chains", teacher={"model": "file://../models/teacher"})
    monkeypatch.chdir(tmp_path)

    chain = read_chain("chains/chain.yaml")

    assert chain.spec.teacher.model == f"file://{tmp_path}/models/teacher"
    assert chain.spec.storage.uri == f"file://{tmp_path}/chains/store"


def test_uris_of_the_command_line_are_read_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "chains").mkdir()
    write_chain(tmp_path / "chains")
    monkeypatch.chdir(tmp_path)

    chain = read_chain(
        "chains/chain.yaml", overrides=["spec.teacher.model=file://./mine"], storage="file://./elsewhere"
    )

    assert chain.spec.teacher.model == f"file://{tmp_path}/mine"
    assert chain.spec.storage.uri == f"file://{tmp_path}/elsewhere"


def test_another_storage_drops_endpoint_and_credentials_of_the_first(tmp_path: Path):
    path = write_chain(tmp_path, storage={"uri": "s3://b/p", "endpointUrl": "http://s3", "secretRef": {"name": "s"}})

    chain = read_chain(str(path), storage="s3://other/place")

    assert chain.spec.storage.to_document() == {"uri": "s3://other/place"}


@pytest.mark.parametrize(
    "override, value_of",
    [
        pytest.param("spec.stages[1].training.epochs=7", lambda s: s.stages[1].training.epochs == 7, id="by number"),
        pytest.param("spec.stages[tiny].training.epochs=7", lambda s: s.stages[1].training.epochs == 7, id="by name"),
        pytest.param(
            "spec.stages[0].training.learningRate=1e-3",
            lambda s: s.stages[0].training.learning_rate == 0.001,
            id="1e-3 is a number",
        ),
        pytest.param("spec.teacher.fineTune={epochs: 2}", lambda s: s.teacher.fine_tune.epochs == 2, id="a mapping"),
        pytest.param("spec.teacher.gate=null", lambda s: s.teacher.gate is None, id="null takes away"),
        pytest.param(
            "spec.template.resources.limits[nvidia.com/gpu]=1",
            lambda s: s.template.resources == {"limits": {"nvidia.com/gpu": 1}},
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
def test_set_replaces_a_field(tmp_path: Path, override: str, value_of: object):
    path = write_chain(tmp_path)

    chain = read_chain(str(path), overrides=[override])

    assert callable(value_of)
    assert value_of(chain.spec)


def test_the_last_set_wins(tmp_path: Path):
    path = write_chain(tmp_path)

    chain = read_chain(str(path), overrides=["spec.task.maxLength=10", "spec.task.maxLength=11"])

    assert chain.spec.task.max_length == 11


@pytest.mark.parametrize(
    "override, want",
    [
        pytest.param(
            "spec.template.training.epoch=1",
            "spec.template.training.epoch: unknown field; did you mean epochs?",
            id="unknown field",
        ),
        pytest.param(
            "spec.task.maxLength=2",
            "spec.task.maxLength: got 2, expected a number of tokens from 4 to 8192",
            id="out of range",
        ),
        pytest.param(
            "spec.task",
            "--set spec.task: has no '='; expected path=value, such as spec.template.training.epochs=1",
            id="no value",
        ),
        pytest.param(
            "task.maxLength=8",
            "--set task.maxLength=8: "
            "expected a path under spec, or metadata.name, such as spec.template.training.epochs=1",
            id="not under spec",
        ),
        pytest.param(
            "spec.stages[huge].gate=1",
            '--set spec.stages[huge].gate=1: spec.stages: got "huge", '
            "expected a number from 0 to 1 or one of mini, tiny",
            id="no such stage",
        ),
        pytest.param(
            "spec.stages[2].gate=1",
            '--set spec.stages[2].gate=1: spec.stages: got "2", expected a number from 0 to 1 or one of mini, tiny',
            id="behind the last",
        ),
        pytest.param(
            "spec.task.type.x=1",
            "--set spec.task.type.x=1: spec.task.type is 'TextClassification'; expected a mapping or a list there",
            id="below a text",
        ),
        pytest.param(
            "spec.task..x=1",
            "--set spec.task..x=1: cannot be read from '..x' on; expected names with '.' and '[...]'",
            id="two dots",
        ),
        pytest.param(
            "spec.task.labels=[a, b",
            "--set spec.task.labels=[a, b: the value is not YAML ("
            "expected ',' or ']', but got '<stream end>'); quote it",
            id="broken YAML",
        ),
    ],
)
def test_a_set_that_cannot_be_used_is_told_in_a_sentence(tmp_path: Path, override: str, want: str):
    path = write_chain(tmp_path)

    assert faults(str(path), overrides=[override]) == [want]


def test_all_faults_are_told_together_each_with_the_name_of_the_file(tmp_path: Path):
    write_chain(tmp_path, teacher={"model": "teacher"})

    done = distillchain_here("validate", "chain.yaml", "--set", "spec.task.maxLength=x", "--set", "oops", cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "chain.yaml: --set oops: has no '='; expected path=value, such as spec.template.training.epochs=1",
        'chain.yaml: spec.task.maxLength: got "x", expected a number of tokens from 4 to 8192',
        'chain.yaml: spec.teacher.model: got "teacher", expected hf://repo[@revision], s3://bucket/prefix or '
        "file:///absolute/path; no spaces, no slash at the end",
    ]


@pytest.mark.parametrize(
    "content, want",
    [
        pytest.param(b"a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'", id="not YAML"),
        pytest.param(b"- a", "expected a mapping with apiVersion, kind, metadata and spec", id="a list"),
        pytest.param(b"", "got 0 documents, expected one; split the file", id="empty"),
        pytest.param(b"a: \xff", "byte 4 is not UTF-8; save the file as UTF-8", id="not UTF-8"),
        pytest.param(None, "there is no such file; expected a chain, or - for stdin", id="missing"),
    ],
)
def test_a_file_that_is_no_chain_is_refused(tmp_path: Path, content: bytes | None, want: str):
    path = tmp_path / "chain.yaml"
    if content is not None:
        path.write_bytes(content)

    assert faults(str(path)) == [want]


@pytest.mark.parametrize("spec", [None, "text", ["list"]])
def test_a_spec_that_is_no_mapping_is_refused(tmp_path: Path, spec: object):
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump({**a_document(), "spec": spec}))

    found = faults(str(path), overrides=["spec.task.maxLength=8"], storage="file://./s")

    assert found, "a sentence, not a traceback"


def test_a_folder_is_no_chain(tmp_path: Path):
    assert faults(str(tmp_path)) == ["cannot be read: Is a directory"]


def test_stdin_is_a_chain_too(tmp_path: Path):
    done = distillchain("validate", "-", cwd=tmp_path, text=write_chain(tmp_path).read_text())

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "stdin: valid: DistillationChain relay, hf://org/teacher -> mini -> tiny; nothing was changed\n"
    )
