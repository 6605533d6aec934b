"""Chains in files, folders and stdin; options that change them; and the messages about what is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chain_builders import a_document
from cli.parts import COMMAND, distillchain, distillchain_here, faults_of, write_chain
from distillchain_api.wire.work_order import MAX_WORK_ORDER_BYTES, WORK_ORDER_ENV
from distillchain_cli.arguments.chain_files import plan_of, read_chain

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml"}}


def write(path: Path, *documents: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    return path


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

    assert faults_of(str(path)) == [want]


@pytest.mark.parametrize("spec", [None, "text", ["list"]])
def test_a_spec_that_is_not_a_mapping_is_refused(tmp_path: Path, spec: object):
    path = write(tmp_path / "chain.yaml", {**a_document(), "spec": spec})

    assert faults_of(str(path), overrides=["spec.task.maxLength=8"], storage="file://./s")


@pytest.mark.parametrize("change", [{"kind": "DistilationChain"}, {"apiVersion": "distillchain.io/v1"}])
def test_a_misspelt_kind_or_version_is_reported_instead_of_skipped(tmp_path: Path, change: dict[str, str]):
    path = write(tmp_path / "chain.yaml", a_document() | change)

    (message,) = faults_of(str(path))

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
    assert faults_of(str(tmp_path)) == ["the folder has no .json, .yaml, .yml file"]


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
        "two.yaml: found 2 chains (one, two), expected one; put each into its own file and name one\n"
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
