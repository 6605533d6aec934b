"""The chains of examples/rated-sentences run to their report on part of their text, and learn it.

scikit-learn and numpy confirm the metrics from the stored predictions, and plain transformers the predictions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from distillchain_api.wire.manifest import Manifest
from trainer.page_programs import printed_by_the_program_of
from trainer.rated_sentences import distillchain, example_on

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]

ROWS = {"train": 970, "validation": 288}
SOURCES, OPINIONS = ["film", "product", "news"], ["negative", "neutral", "positive", "strong"]


def write_example(root: Path, name: str) -> None:
    """The chain on fewer rows, for which it takes larger steps and more of them. It has no gates."""
    document = example_on(root, name, **ROWS)
    spec = document["spec"]
    spec["teacher"].pop("gate")
    spec["stages"][0].pop("gate")
    spec["teacher"]["fineTune"]["learningRate"] = 3e-4
    spec["template"]["training"] |= {"epochs": 8, "learningRate": 1e-3}
    (root / "chain.yaml").write_text(yaml.safe_dump(document))


def run(root: Path) -> dict[str, Manifest]:
    """The manifests of a chain that has run, by stage."""
    done = distillchain("run", "chain.yaml", folder=root)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [Manifest.parse(path.read_text()) for path in root.glob("store/stages/*/manifest.json")]
    return {manifest.stage: manifest for manifest in found}


def rows_of(root: Path) -> list[list[str]]:
    """Sentence, rating and labels of the validation rows."""
    text = (root / "data/rated-validation.tsv").read_bytes().decode().removesuffix("\n")
    return [line.split("\t") for line in text.split("\n")[1:]]


def folder_of(stage: Manifest) -> Path:
    return Path(stage.checkpoint.removeprefix("file://"))


def predictions(stage: Manifest) -> list[dict[str, Any]]:
    path = folder_of(stage).parent / "results/predictions-validation.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs(stage: Manifest, texts: list[str]) -> NDArray[np.float64]:
    """Logits [rows, outputs] of plain transformers."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = folder_of(stage)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits
    return np.asarray(logits, dtype=np.float64)


def report(root: Path) -> tuple[str, dict[str, Any]]:
    """The page, and the report as data."""
    done = distillchain("report", "chain.yaml", "--to", "report.html", folder=root)
    assert done.returncode == 0, done.stderr
    data = distillchain("report", "chain.yaml", "-o", "json", folder=root)
    return (root / "report.html").read_text(), json.loads(data.stdout)


def test_the_chain_of_labels_learns_sources_and_opinions(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from sklearn.metrics import accuracy_score, f1_score, hamming_loss, roc_auc_score

    labels = [*SOURCES, *OPINIONS]
    write_example(tmp_path, "labels.yaml")
    manifests = run(tmp_path)

    rows = rows_of(tmp_path)
    truth = np.array([[label in cell.split(",") for label in labels] for *_, cell in rows])
    for stage in manifests.values():
        found = predictions(stage)
        assert [set(line["labels"]) for line in found] == [set(cell.split(",")) for *_, cell in rows]
        predicted = np.array([[label in line["predicted"] for label in labels] for line in found])
        assert stage.student.metrics.validation == pytest.approx(
            {
                "microF1": f1_score(truth, predicted, average="micro"),
                "macroF1": f1_score(truth, predicted, average="macro"),
                "subsetAccuracy": accuracy_score(truth, predicted),
                "hammingLoss": hamming_loss(truth, predicted),
            }
        )
        # The same labels for each row reach 0.54, and random scores an area of 0.5 (by chance 0.56). So few rows do not
        # teach what is negative and what is positive.
        assert f1_score(truth, predicted, average="micro") > best_guess(truth) + 0.05
        logits = np.array([line["logits"] for line in found])
        areas = dict(zip(labels, roc_auc_score(truth, logits, average=None), strict=True))
        assert min(areas[source] for source in SOURCES) > 0.9, areas
        assert min(areas["neutral"], areas["strong"]) > 0.6, areas
    student = manifests["tiny"]
    texts = [text for text, *_ in rows[:20]]
    assert outputs(student, texts) == pytest.approx(
        np.array([line["logits"] for line in predictions(student)[:20]]), abs=1e-4
    )
    config = json.loads((folder_of(student) / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == labels
    answers = printed_by_the_program_of("multi-label-classification", student.checkpoint, text=texts[0], capsys=capfd)
    shown = dict(re.findall(r"'label': '(\w+)', 'score': ([\d.e-]+)", answers))
    expected = dict(zip(labels, outputs(student, texts)[0], strict=True))
    assert {label: float(score) for label, score in shown.items()} == pytest.approx(
        {label: 1 / (1 + np.exp(-logit)) for label, logit in expected.items()}, abs=1e-5
    )
    page, data = report(tmp_path)
    assert "Labels of tiny" in page
    assert data["chance"]["guesser"] == "always answering the same labels"
    assert [found["label"] for found in data["details"]["labels"]] == labels


def best_guess(truth: NDArray[np.bool_]) -> float:
    """The largest micro F1 of the same labels for each row: those of the most frequent labels, for some number of them."""
    counts = np.sort(truth.sum(axis=0))[::-1]
    return max(2 * counts[:k].sum() / (k * len(truth) + counts.sum()) for k in range(1, len(counts) + 1))


def test_the_chain_of_ratings_learns_numbers_in_their_own_unit(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    write_example(tmp_path, "rating.yaml")
    strict = distillchain("run", "chain.yaml", "--set", "spec.stages[tiny].gate={maxMetric: 0.001}", folder=tmp_path)
    assert strict.returncode == 1
    assert "is above spec.stages[0].gate.maxMetric 0.001; train it better or raise the gate" in strict.stderr

    # The student was trained in standard units and saved so; it is committed in the units of the data all the same.
    manifests = run(tmp_path)

    rows = rows_of(tmp_path)
    truth = np.array([float(rating) for _, rating, _ in rows])
    for stage in manifests.values():
        found = predictions(stage)
        assert [line["target"] for line in found] == pytest.approx(truth)
        numbers = np.array([line["predicted"] for line in found])
        assert stage.student.metrics.validation == pytest.approx(
            {
                "pearson": pearsonr(truth, numbers)[0],
                "spearman": spearmanr(truth, numbers)[0],
                "mse": mean_squared_error(truth, numbers),
                "mae": mean_absolute_error(truth, numbers),
            },
            rel=1e-3,
        )
        # 5 % of unrelated numbers reach a correlation of 0.09, and the median of all ratings has an error of 1.34.
        assert pearsonr(truth, numbers)[0] > 0.3
        assert (
            mean_absolute_error(truth, numbers)
            < mean_absolute_error(truth, np.full_like(truth, np.median(truth))) - 0.1
        )
    student = manifests["tiny"]
    texts = [text for text, *_ in rows[:20]]
    assert outputs(student, texts)[:, 0] == pytest.approx(
        np.array([line["predicted"] for line in predictions(student)[:20]]), abs=1e-4
    )
    assert student.recipe["distillation"]["objective"] == "LogitMSE"
    config = json.loads((folder_of(student) / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "rating"})
    number = printed_by_the_program_of("regression", student.checkpoint, text=texts[0], capsys=capfd)
    assert float(number) == pytest.approx(outputs(student, texts)[0, 0], abs=1e-3)
    page, data = report(tmp_path)
    assert "Errors of tiny" in page
    assert "lower is better" in page
    assert "retention" not in data["stages"][-1]["model"]
    assert sum(found["rows"] for found in data["details"]["ranges"]) == len(rows)
