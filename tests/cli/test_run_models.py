"""`distillchain run` with the real trainer on small models: run, run again, interrupt and continue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.parts import COMMAND, WITH_DEFAULT_SIGNALS, clean_environment, distillchain, example_in_help
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.manifest import Manifest

pytestmark = [pytest.mark.models, pytest.mark.xdist_group("cli-models")]

ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # other tests run on the same two cores


def write_relay(root: Path, **training: Any) -> None:
    """root/chain.yaml: a BERT with random weights is fine-tuned and teaches a smaller one with new weights."""
    from trainer.parts import SMALL_BERT, a_chain_document

    student = {
        "architecture": {"modelType": "bert", "config": {**SMALL_BERT, "hidden_size": 8}},
        "tokenizer": "file://./start",
    }
    document = a_chain_document(
        root,
        teacher={"model": "file://./start", "fineTune": {"epochs": 4}},
        stages=[{"name": "small", "student": student, "training": training}],
        splits={"test": "test.tsv"},
        storage={"uri": "file://./store"},
    )
    document["spec"]["task"]["dataset"]["uri"] = "file://./data"
    (root / "chain.yaml").write_text(yaml.safe_dump(document))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a chain that was run, and the finished command."""
    from trainer.parts import save_bert, write_data

    root = tmp_path_factory.mktemp("cli")
    write_data(root / "data", train=120, validation=60, test=40)
    mislabel_last_row(root / "data" / "dev.tsv")
    save_bert(root / "start", labels=None)
    write_relay(root)
    done = distillchain("run", "chain.yaml", cwd=root, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return root, done


def mislabel_last_row(path: Path) -> None:
    """Keeps the accuracy of every model that learns the task below 1, so that a gate of 1 is missed."""
    *lines, last = path.read_text().splitlines()
    text, _, label = last.rpartition("\t")
    path.write_text("\n".join([*lines, f"{text}\t{1 - int(label)}", ""]))


def manifests(root: Path) -> dict[str, Manifest]:
    found = [Manifest.parse(path.read_text()) for path in root.glob("store/stages/*/manifest.json")]
    return {manifest.stage: manifest for manifest in found}


def test_a_run_ends_with_its_table(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, done = ran

    lines = done.stdout.splitlines()

    committed = manifests(root)
    assert [line.split()[0] for line in lines[:3]] == ["STAGE", "teacher", "small"]
    assert f"{committed['small'].student.metrics.validation['accuracy']:.4f}" in lines[2]
    assert lines[2].startswith("small *")
    assert f"succeeded: {committed['small'].checkpoint}\n" in done.stderr
    report = root / "store" / "stages" / committed["small"].digest / "report.html"
    assert f"report: file://{report}\n" in done.stderr
    assert "Training of small" in report.read_text()
    assert "stage small: train " in done.stderr


def test_a_second_run_trains_nothing_and_its_status_is_that_of_a_cluster(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
):
    root, _ = ran

    done = distillchain("run", "chain.yaml", "-o", "json", cwd=root)

    status = ChainStatus.parse(done.stdout)
    assert (done.returncode, status.phase, status.stage) == (0, "Succeeded", "2/2")
    assert [entry.reused for entry in status.stages] == [True, True]
    assert status.result is not None
    assert status.result.test_metric is not None


def test_a_plan_shows_what_is_committed_and_what_an_edit_would_train(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
):
    root, _ = ran

    def actions(*more: str) -> list[str]:
        done = distillchain("plan", "chain.yaml", "-o", "json", *more, cwd=root)
        return [stage["action"] for stage in json.loads(done.stdout)["stages"]]

    assert actions() == ["reuse", "reuse"]
    assert actions("--set", "spec.stages[small].training.epochs=9") == ["reuse", "train"]
    assert actions("--set", "spec.teacher.fineTune.epochs=9") == ["train", "train"]
    assert actions("--set", "spec.teacher.gate={minMetric: 1.0}") == ["fail", "wait"]


def test_a_missed_gate_ends_with_exit_code_1_and_the_sentence_of_the_trainer(
    ran: tuple[Path, subprocess.CompletedProcess[str]],
):
    root, _ = ran
    gate = "spec.teacher.gate={minMetric: 1.0}"

    done = distillchain("run", "chain.yaml", "--set", gate, cwd=root)

    assert done.returncode == 1
    assert "failed: stage teacher: accuracy " in done.stderr
    assert " is below spec.teacher.gate.minMetric 1.00; " in done.stderr


@pytest.mark.parametrize("processes, epochs", [(1, 150), (2, 50)])  # two students, so none is found
def test_after_ctrl_c_the_same_command_continues(
    ran: tuple[Path, subprocess.CompletedProcess[str]], processes: int, epochs: int
):
    root = ran[0]  # the same folder, because digests depend on its paths
    more = ["--set", f"spec.stages[small].training.epochs={epochs}"]
    more += ["--set", f"spec.template.parallelism={{processesPerNode: {processes}}}"]
    process = subprocess.Popen(
        [*WITH_DEFAULT_SIGNALS, *COMMAND, "run", "chain.yaml", *more],
        cwd=root,
        env=clean_environment(root) | ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    for line in process.stderr:
        if "stage small: train" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "to continue, run the same command again\n" in stderr
    assert "small" in distillchain("plan", "chain.yaml", *more, cwd=root).stderr
    assert "training state is saved" in distillchain("plan", "chain.yaml", *more, cwd=root).stdout

    done = distillchain("run", "chain.yaml", *more, cwd=root, **ONE_THREAD)

    assert done.returncode == 0, done.stderr
    (manifest,) = (
        manifest for manifest in manifests_of(root, "small") if manifest.recipe["training"]["epochs"] == epochs
    )
    assert manifest.run.resumed


def manifests_of(root: Path, stage: str) -> list[Manifest]:
    found = [Manifest.parse(path.read_text()) for path in root.glob("store/stages/*/manifest.json")]
    return [manifest for manifest in found if manifest.stage == stage]


def test_the_example_of_run_works_with_the_real_trainer(ran: tuple[Path, subprocess.CompletedProcess[str]]):
    root, _ = ran

    done = distillchain(*example_in_help("run", cwd=root), cwd=root)

    assert done.returncode == 0, done.stderr
