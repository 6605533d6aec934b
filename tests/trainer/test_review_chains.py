"""The chains of examples/reviews run to their report, and plain transformers confirms what they measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillchain_api.wire.manifest import Manifest
from trainer.page_programs import printed_by_the_program_of
from trainer.reviews import distillchain, write_chain

pytestmark = pytest.mark.models


def run(root: Path) -> dict[str, Manifest]:
    """The manifests of a chain that has run, by stage."""
    done = distillchain("run", "chain.yaml", folder=root)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [Manifest.parse(path.read_text()) for path in root.glob("store/stages/*/manifest.json")]
    return {manifest.stage: manifest for manifest in found}


def outputs(checkpoint: str, texts: list[str]) -> Any:
    """Logits [rows, outputs] of plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = checkpoint.removeprefix("file://")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.numpy()


def rows_of(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def report(root: Path) -> tuple[str, dict[str, Any]]:
    """The page, and the report as data."""
    done = distillchain("report", "chain.yaml", "--to", "report.html", folder=root)
    assert done.returncode == 0, done.stderr
    data = distillchain("report", "chain.yaml", "-o", "json", folder=root)
    return (root / "report.html").read_text(), json.loads(data.stdout)


def test_the_chain_of_labels_learns_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from sklearn.metrics import accuracy_score, f1_score, hamming_loss

    labels = ["food", "service", "price"]

    write_chain(tmp_path, "labels.yaml")
    student = run(tmp_path)["tiny"]

    rows = rows_of(tmp_path / "data/labels-validation.tsv")
    truth = np.array([[label in cell.split(",") for label in labels] for _, cell in rows])
    predicted = outputs(student.checkpoint, [text for text, _ in rows]) > 0
    assert student.student.metrics.validation == pytest.approx(
        {
            "microF1": f1_score(truth, predicted, average="micro"),
            "macroF1": f1_score(truth, predicted, average="macro"),
            "subsetAccuracy": accuracy_score(truth, predicted),
            "hammingLoss": hamming_loss(truth, predicted),
        }
    )
    config = json.loads((Path(student.checkpoint.removeprefix("file://")) / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == labels
    text = rows[0][0]
    answers = printed_by_the_program_of("multi-label-classification", student.checkpoint, text=text, capsys=capsys)
    shown = dict(re.findall(r"'label': '(\w+)', 'score': ([\d.e-]+)", answers))
    logits = dict(zip(labels, outputs(student.checkpoint, [text])[0], strict=True))
    assert {label: float(score) for label, score in shown.items()} == pytest.approx(
        {label: 1 / (1 + np.exp(-logit)) for label, logit in logits.items()}, abs=1e-5
    )
    page, data = report(tmp_path)
    assert "Labels of tiny" in page
    assert data["chance"]["guesser"] == "always answering the same labels"
    assert [found["label"] for found in data["details"]["labels"]] == labels


def test_the_chain_of_stars_learns_numbers_in_their_own_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    write_chain(tmp_path, "stars.yaml")
    strict = distillchain("run", "chain.yaml", "--set", "spec.stages[tiny].gate={maxMetric: 0.001}", folder=tmp_path)
    assert strict.returncode == 1
    assert "is above spec.stages[0].gate.maxMetric 0.001; train it better or raise the gate" in strict.stderr

    # The student was trained in standard units and saved so; it is committed in the units of the data all the same.
    manifests = run(tmp_path)

    rows = rows_of(tmp_path / "data/stars-validation.tsv")
    truth = np.array([float(cell) for _, cell in rows])
    for stage in manifests.values():
        numbers = outputs(stage.checkpoint, [text for text, _ in rows])[:, 0].astype(np.float64)
        assert stage.student.metrics.validation == pytest.approx(
            {
                "pearson": pearsonr(truth, numbers)[0],
                "spearman": spearmanr(truth, numbers)[0],
                "mse": mean_squared_error(truth, numbers),
                "mae": mean_absolute_error(truth, numbers),
            },
            rel=1e-3,
        )
        assert numbers.std() == pytest.approx(truth.std(), rel=0.3)
    student = manifests["tiny"]
    assert student.student.metrics.validation["mae"] < 10
    assert student.recipe["distillation"]["objective"] == "LogitMSE"
    config = json.loads((Path(student.checkpoint.removeprefix("file://")) / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "stars"})
    text = rows[0][0]
    number = printed_by_the_program_of("regression", student.checkpoint, text=text, capsys=capsys)
    assert float(number) == pytest.approx(outputs(student.checkpoint, [text])[0, 0], abs=1e-3)
    page, data = report(tmp_path)
    assert "Errors of tiny" in page
    assert "lower is better" in page
    assert "retention" not in data["stages"][-1]["model"]
    assert sum(found["rows"] for found in data["details"]["ranges"]) == len(rows)
