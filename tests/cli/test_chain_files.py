"""Chains in files, folders and stdin; options that change them; and the messages about what is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chain_builders import a_document
from cli.parts import COMMAND, distillchain, distillchain_here, write_chain
from distillchain_api.faults import BadDocument
from distillchain_api.wire.work_order import MAX_WORK_ORDER_BYTES, WORK_ORDER_ENV
from distillchain_cli.chain_files import plan_of, read_chain

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}}


def faults(*arguments: str, **options: object) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        read_chain(*arguments, **options)  # type: ignore[arg-type]  # the tables hold options of several types
    return [str(fault) for fault in caught.value.faults]


def write(path: Path, *documents: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


# --- relative URIs


def test_relative_uris_in_a_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "chains").mkdir()
    write_chain(tmp_path / "chains", teacher={"model": "file://../models/teacher"})
    monkeypatch.chdir(tmp_path)

    chain = read_chain("chains/chain.yaml")

    assert chain.spec.teacher.model == f"file://{tmp_path}/models/teacher"
    assert chain.spec.storage.uri == f"file://{tmp_path}/chains/store"


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
        ("https://example.com/org/bert", "without spaces, '//', '/./' and '/../'"),
        ("s3://b/ag_raw", "a bucket's name has 3 to 63 lowercase letters, digits, dots and hyphens"),
        ("s3://Data/ag_raw", "a bucket's name has 3 to 63 lowercase letters, digits, dots and hyphens"),
        ("s3://data//ag_raw", "without spaces, '//', '/./' and '/../'"),
    ],
)
def test_a_path_without_the_form_of_a_uri_gets_the_form_as_a_remedy(tmp_path: Path, uri: str, hint: str):
    path = write_chain(tmp_path, teacher={"model": uri})

    (message,) = faults(str(path))

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
        ("gs://models", "without spaces, '//', '/./' and '/../'"),
        ("hf://org/bert", "without spaces, '//', '/./' and '/../'"),
    ],
)
def test_a_storage_option_without_the_form_of_a_uri_gets_the_form_as_a_remedy(tmp_path: Path, uri: str, hint: str):
    (message,) = faults(str(write_chain(tmp_path)), storage=uri)

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
    ],
)
def test_a_fault_of_a_set_names_the_option(tmp_path: Path, override: str, want: str):
    path = write_chain(tmp_path)

    assert faults(str(path), overrides=[override]) == [f"--set {override}: {want}"]


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


# --- what is in a file


@pytest.mark.parametrize(
    "content, want",
    [
        pytest.param(b"a: [1", "line 1, column 6: expected ',' or ']' for the bracket opened on line 1", id="not YAML"),
        pytest.param(b"spec:\n\ta: 1", "line 2: a tab is used for indentation; use spaces", id="a tab"),
        pytest.param(
            b"- a", "line 1, column 1: expected a mapping with apiVersion, kind, metadata and spec", id="a list"
        ),
        pytest.param(b"", "found no DistillationChain, expected at least one", id="empty"),
        pytest.param(b"# a comment\n---\n", "found no DistillationChain, expected at least one", id="a comment"),
        pytest.param(b"a: \xff", "byte 4 is not UTF-8; save the file as UTF-8", id="not UTF-8"),
        pytest.param(None, "there is no such file; expected a chain, or - for stdin", id="missing"),
    ],
)
def test_a_file_without_a_chain_is_refused(tmp_path: Path, content: bytes | None, want: str):
    path = tmp_path / "chain.yaml"
    if content is not None:
        path.write_bytes(content)

    assert faults(str(path)) == [want]


@pytest.mark.parametrize("spec", [None, "text", ["list"]])
def test_a_spec_that_is_not_a_mapping_is_refused(tmp_path: Path, spec: object):
    path = write(tmp_path / "chain.yaml", {**a_document(), "spec": spec})

    assert faults(str(path), overrides=["spec.task.maxLength=8"], storage="file://./s")


@pytest.mark.parametrize("change", [{"kind": "DistilationChain"}, {"apiVersion": "distillchain.io/v1"}])
def test_a_misspelt_kind_or_version_is_reported_instead_of_skipped(tmp_path: Path, change: dict[str, str]):
    path = write(tmp_path / "chain.yaml", a_document() | change)

    (message,) = faults(str(path))

    assert message.startswith(f"{next(iter(change))}: got ")


def test_other_kinds_beside_a_chain_are_skipped_with_a_note(tmp_path: Path):
    write(tmp_path / "all.yaml", NAMESPACE, a_document())

    done = distillchain_here("validate", "all.yaml", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stdout == "all.yaml: valid: DistillationChain relay, hf://org/teacher -> mini -> tiny\n"
    assert done.stderr == "all.yaml: skipped Namespace/ml, because it is not a DistillationChain\n"


def test_a_file_with_other_kinds_only_is_an_error(tmp_path: Path):
    write(tmp_path / "namespace.yaml", NAMESPACE)

    done = distillchain_here("validate", "namespace.yaml", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "namespace.yaml: found no DistillationChain, expected at least one"


def test_validate_reads_several_files_and_folders_and_reports_all_of_them(tmp_path: Path):
    (tmp_path / "chains" / "below").mkdir(parents=True)
    write(tmp_path / "good.yaml", a_document("good"))
    write(tmp_path / "two.yaml", a_document("one"), a_document("two", suspend="x"))
    write(tmp_path / "chains" / "a.yml", a_document("a"))
    (tmp_path / "chains" / "b.json").write_text(json.dumps(a_document("b"), indent="\t"))
    (tmp_path / "chains" / "README.md").write_text("no chain")
    write(tmp_path / "chains" / "below" / "c.yaml", a_document("c"))

    done = distillchain_here("validate", "good.yaml", "two.yaml", "missing.yaml", "chains", cwd=tmp_path)

    assert done.returncode == 2
    assert [line.split(", hf:")[0] for line in done.stdout.splitlines()] == [
        "good.yaml: valid: DistillationChain good",
        "two.yaml: valid: DistillationChain one",
        "chains/a.yml: valid: DistillationChain a",
        "chains/b.json: valid: DistillationChain b",
    ]
    assert done.stderr.splitlines() == [
        "missing.yaml: there is no such file; expected a chain, or - for stdin",
        'two.yaml: two: spec.suspend: got "x", expected true or false',
    ]


def test_validate_reads_subfolders_only_if_asked_to(tmp_path: Path):
    (tmp_path / "chains" / "below").mkdir(parents=True)
    write(tmp_path / "chains" / "below" / "c.yaml", a_document("c"))

    done = distillchain_here("validate", "-R", "chains", cwd=tmp_path)
    not_asked = distillchain_here("validate", "chains", cwd=tmp_path)

    assert done.stdout.startswith("chains/below/c.yaml: valid: DistillationChain c"), done.stderr
    assert (not_asked.returncode, not_asked.stdout) == (2, "")


def test_an_empty_file_beside_a_chain_is_no_error(tmp_path: Path):
    write_chain(tmp_path)
    (tmp_path / "empty.yaml").touch()

    assert distillchain_here("validate", "empty.yaml", "chain.yaml", cwd=tmp_path).returncode == 0


def test_a_folder_without_chain_files_is_an_error(tmp_path: Path):
    assert faults(str(tmp_path)) == ["the folder has no .json, .yaml, .yml file"]


def test_the_items_of_a_list_are_read_as_documents(tmp_path: Path):
    chains = [a_document("a"), a_document("b")]
    of_kubectl = {"apiVersion": "v1", "kind": "List", "items": [chains[0], NAMESPACE]}
    bare = [{key: chain[key] for key in ("metadata", "spec")} for chain in chains[1:]]
    of_api_server = {"apiVersion": "distillchain.io/v1alpha1", "kind": "DistillationChainList", "items": bare}
    write(tmp_path / "lists.yaml", of_kubectl, of_api_server)

    done = distillchain_here("validate", "lists.yaml", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert [line.split(",")[0].split()[-1] for line in done.stdout.splitlines()] == ["a", "b"]


@pytest.mark.parametrize("command", ["plan", "run", "report"])
def test_a_command_for_one_chain_refuses_a_file_with_two(tmp_path: Path, command: str):
    write(tmp_path / "two.yaml", a_document("one"), a_document("two"))

    done = distillchain_here(command, "two.yaml", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "two.yaml: found 2 chains (one, two), expected one; put each into a file of its own and name one\n"
    )


def test_a_command_for_one_chain_accepts_other_kinds_in_its_file(tmp_path: Path):
    write(tmp_path / "all.yaml", NAMESPACE, a_document(storage={"uri": "file://./store"}))

    done = distillchain_here("plan", "all.yaml", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stderr.splitlines()[0] == "all.yaml: skipped Namespace/ml, because it is not a DistillationChain"


def test_a_chain_can_come_from_stdin(tmp_path: Path):
    done = distillchain("validate", "-", cwd=tmp_path, text=write_chain(tmp_path).read_text())

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "stdin: valid: DistillationChain relay, hf://org/teacher -> mini -> tiny\n"


def test_a_closed_stdin_is_reported(tmp_path: Path):
    command = shlex.join([*COMMAND, "validate", "-"])

    done = subprocess.run(["bash", "-c", f"{command} <&-"], cwd=tmp_path, check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (2, "stdin: is closed; expected a chain\n")


# --- size of the work order


def write_large_chain(folder: Path, size_bytes: int) -> Path:
    """A chain whose only stage has an architecture of this size."""
    document = a_document(stages=["mini"])
    config = {f"field{place}": "é" * 1000 for place in range(size_bytes // 2000)}
    architecture = {"modelType": "bert", "config": config}
    document["spec"]["stages"][0]["student"] = {"architecture": architecture, "tokenizer": "hf://org/teacher"}
    return write(folder / "chain.yaml", document)


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_work_order_too_large_for_a_variable_is_refused_before_anything_starts(tmp_path: Path, command: str):
    write_large_chain(tmp_path, 131_072)

    done = distillchain_here(command, "chain.yaml", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("chain.yaml: spec.stages[0].student.architecture.config: takes 13")
    assert "bytes long; expected 131047 at most, because an environment variable holds it" in done.stderr


def test_the_limit_of_a_work_order_is_that_of_the_system(tmp_path: Path):
    order = plan_of(read_chain(str(write_large_chain(tmp_path, 128_000))), source="").stages[0].work_order
    text = order.to_json()
    text += " " * (MAX_WORK_ORDER_BYTES - len(text.encode()))

    subprocess.run(["true"], env={WORK_ORDER_ENV: text}, check=True)
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["true"], env={WORK_ORDER_ENV: f"{text} "}, check=True)


def test_too_many_labels_are_named_once_for_all_stages(tmp_path: Path):
    document = a_document()
    document["spec"]["task"]["labels"] = [f"class {number:0200}" for number in range(700)]
    write(tmp_path / "chain.yaml", document)

    done = distillchain_here("validate", "chain.yaml", cwd=tmp_path)

    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["spec.task.labels"]


def test_validate_warns_of_fields_without_effect(tmp_path: Path):
    document = a_document()
    document["spec"]["stages"][0]["training"] = {"labelSmoothing": 0.1}
    write(tmp_path / "chain.yaml", document)

    done = distillchain_here("validate", "chain.yaml", cwd=tmp_path)

    assert done.returncode == 0
    assert done.stderr == (
        "chain.yaml: warning: spec.stages[0].training.labelSmoothing has no effect: stage mini has distillation.alpha 1, "
        "which leaves no weight to the labels\n"
    )
