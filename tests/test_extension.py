"""A new task type and a new objective need their own files and `make generate`, and nothing else.

The packages are copied, the toy files of tests/extension are added, and a whole chain runs from the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.parts import SMALL_BERT, save_bert, sentences

pytestmark = pytest.mark.models

PACKAGES = ("api", "store", "operator", "report", "trainer", "cli")


@pytest.fixture(scope="module")
def extended(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the toy task and the toy objective."""
    copy, toys = tmp_path_factory.mktemp("extended"), repository / "tests/extension"
    for package in PACKAGES:
        shutil.copytree(repository / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(toys / "star_rating.py", copy / "api/distillchain_api/tasks")
    shutil.copytree(toys / "star_rating_trainer", copy / "trainer/distillchain_trainer/tasks/star_rating")
    shutil.copy(toys / "half_squares.py", copy / "trainer/distillchain_trainer/objectives")
    names = run(copy, "-m", "distillchain_trainer.objectives.names").stdout  # what `make generate` does
    (copy / "api/distillchain_api/objectives.py").write_text(names)
    return copy


def run(copy: Path, *command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(copy / package) for package in PACKAGES)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def a_chain(root: Path) -> dict[str, Any]:
    return {
        "apiVersion": "distillchain.io/v1alpha1",
        "kind": "DistillationChain",
        "metadata": {"name": "stars"},
        "spec": {
            "task": {
                "type": "StarRating",
                "stars": 5,
                "dataset": {
                    "uri": f"file://{root}",
                    "splits": {"train": "train.tsv", "validation": "dev.tsv"},
                    "text": ["sentence"],
                    "label": "stars",
                },
                "maxLength": 16,
            },
            "storage": {"uri": f"file://{root}/store"},
            "teacher": {"model": f"file://{root}/start", "fineTune": {"epochs": 6}},
            "template": {
                "training": {"epochs": 6, "batchSize": 16, "learningRate": 0.01},
                "distillation": {"objective": "HalfSquares", "parameters": {"factor": 2}, "alpha": 0.9},
            },
            "stages": [
                {
                    "name": "small",
                    "student": {
                        "architecture": {"modelType": "bert", "config": {**SMALL_BERT, "hidden_size": 8}},
                        "tokenizer": f"file://{root}/start",
                    },
                    "gate": {"minMetric": 0.5},
                }
            ],
        },
    }


def test_a_toy_task_and_a_toy_objective_run_a_whole_chain(extended: Path, tmp_path: Path):
    save_bert(tmp_path / "start", labels=None)
    for name, rows, seed in (("train", 160, 1), ("dev", 60, 2)):
        lines = [f"{text}\t{1 + 3 * label}\n" for text, label in sentences(rows, seed)]
        (tmp_path / f"{name}.tsv").write_text("sentence\tstars\n" + "".join(lines))
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(a_chain(tmp_path)))

    run(extended, "-m", "distillchain_cli", "validate", "chain.yaml", folder=tmp_path)
    run(extended, "-m", "distillchain_cli", "run", "chain.yaml", folder=tmp_path)
    run(extended, "-m", "distillchain_cli", "report", "chain.yaml", "--to", "report.html", folder=tmp_path)

    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("store/stages/*/manifest.json")]
    student = next(manifest for manifest in manifests if manifest["stage"] == "small")
    distillation = student["recipe"]["distillation"]
    assert (distillation["objective"], distillation["parameters"]) == ("HalfSquares", {"factor": 2.0})
    assert student["student"]["metrics"]["validation"]["closeness"] > 0.7
    assert "doubt" not in student["student"]
    assert "closeness" in (tmp_path / "report.html").read_text()


def test_the_crd_knows_both(extended: Path):
    crd = yaml.safe_load(run(extended, "-m", "distillchain_api.resource.crd").stdout)

    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert {"StarRating", "TextClassification"} <= set(spec["task"]["properties"]["type"]["enum"])
    assert {"closeness", "accuracy"} <= set(spec["task"]["properties"]["metric"]["enum"])
    assert {"stars", "labels"} <= spec["task"]["properties"].keys()
    distillation = spec["template"]["properties"]["distillation"]
    assert {"HalfSquares", "SoftTargets"} <= set(distillation["properties"]["objective"]["enum"])
    assert distillation["properties"]["parameters"]["properties"]["factor"]["maximum"] == 10
    rules = [rule["message"] for rule in distillation["x-kubernetes-validations"]]
    assert any("factor only with objective HalfSquares" in message for message in rules)
