"""MultiLabelClassification in the trainer: rows, metrics, chance, the order of labels and the losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillchain_api.faults import BadDocument
from distillchain_api.tasks.multi_label_classification import MultiLabelClassification
from distillchain_trainer.data.split import Split
from distillchain_trainer.errors import DataInvalid, GateNotMet, LabelMismatch
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.multi_label_classification.chance import best_order, doubt_of
from distillchain_trainer.tasks.multi_label_classification.evaluate import MultiLabelled, table_of
from distillchain_trainer.tasks.multi_label_classification.rows import read_task_data
from later import Later

heads = Later("distillchain_trainer.tasks.sequences.heads")
LABELS = ["food", "service", "price"]
GOOD_ROWS = ["good\tfood", "bad\tservice", "dear\tfood,price", "nothing\t"]


def a_task(folder: Path | str = "/nowhere", *, ending: str = "tsv", **task: Any) -> MultiLabelClassification:
    splits = {"train": f"train.{ending}", "validation": f"dev.{ending}"}
    dataset = {
        "uri": f"file://{folder}",
        "splits": splits,
        "text": ["text"],
        "label": "about",
        **task.pop("dataset", {}),
    }
    return MultiLabelClassification.parse(
        {"type": "MultiLabelClassification", "dataset": dataset, "labels": LABELS, **task}
    )


def write(path: Path, rows: list[str]) -> None:
    path.write_text("text\tabout\n" + "".join(f"{row}\n" for row in rows))


def read(folder: Path, warnings: StageWarnings | None = None, **task: Any) -> dict[str, Split]:
    data = read_task_data(
        a_task(folder, **task),
        endpoint_url=None,
        region=None,
        folder=folder / "scratch",
        warnings=warnings or StageWarnings(),
    )
    return data.splits


def test_a_label_must_not_contain_the_separator_of_a_file_of_text():
    labels = ["joy, delight", "anger"]

    with pytest.raises(BadDocument) as refused:
        a_task(labels=labels)

    assert str(refused.value) == (
        'labels[0]: got "joy, delight", expected a name without dataset.separator ,; choose a separator that no label '
        "contains"
    )
    assert a_task(labels=labels, dataset={"separator": "|"}).labels == labels
    assert a_task(labels=labels, ending="jsonl").labels == labels


@pytest.mark.parametrize("labels", [["1", "1.0"], ["a", "a"]])
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[str]):
    with pytest.raises(BadDocument, match="labels: got"):
        a_task(labels=labels)


def test_cells_of_text_are_separated_and_an_empty_cell_is_a_row_without_a_label(tmp_path: Path):
    write(tmp_path / "train.tsv", [*GOOD_ROWS, "in any order\tPRICE, food", "by number\t2,1"])
    write(tmp_path / "dev.tsv", [f"held out {row}" for row in GOOD_ROWS])
    warnings = StageWarnings()

    splits = read(tmp_path, warnings)

    assert splits["train"].targets == [[0], [1], [0, 2], [], [0, 2], [1, 2]]
    assert any("class names differ from spec.task.labels in case: PRICE for price" in it for it in warnings.sentences)


def test_lists_of_names_and_numbers_need_no_separator(tmp_path: Path):
    rows = [["food"], [1], ["price", 0], [], None]
    for name in ("train", "dev"):
        lines = [json.dumps({"text": f"{name} {i}", "about": about}) + "\n" for i, about in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))

    assert read(tmp_path, ending="jsonl")["train"].targets == [[0], [1], [0, 2], [], []]


def test_class_labels_are_matched_by_name(tmp_path: Path):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"text": Value("string"), "about": Sequence(ClassLabel(names=["price", "food", "service"]))})
    for name in ("train", "dev"):
        rows = {"text": [f"{name} 1", f"{name} 2"], "about": [[0, 1], [2]]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")

    assert read(tmp_path, ending="parquet", labels=["food", "service", "price"])["train"].targets == [[0, 2], [1]]


@pytest.mark.parametrize(
    "rows, want",
    [
        pytest.param(["odd\tfood,decor"], 'dev.tsv:6, column "about": got "decor", expected one of food, service, price, or a number from 0 to 2 in that order; correct the row or spec.task.labels', id="unknown label"),
        pytest.param(["odd\tfood;price"], """got "food;price", expected another separator; write separator: ';' in spec.task.dataset""", id="another separator"),
        pytest.param(["odd\tfood;decor"], 'got "food;decor", expected one of food', id="another separator and an unknown label"),
        pytest.param(["odd\t1,0,0"], 'got "1,0,0", expected each label once; write the numbers of the labels that apply, not 0 or 1 for each', id="0 or 1 for each label"),
        pytest.param(["odd\tfood,food"], 'got "food,food", expected each label once; remove the repeated one', id="a label twice"),
        pytest.param(["odd\tfood,,price"], 'got "food,,price", expected a label between two separators', id="one separator too many"),
        pytest.param(["odd\t['food']"], "expected labels separated by ','; write them without brackets and quotation marks", id="a list as pandas writes it"),
        pytest.param(["\tfood"], 'column "text": the cell is empty', id="no text"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, rows: list[str], want: str):
    write(tmp_path / "train.tsv", GOOD_ROWS)
    write(tmp_path / "dev.tsv", [*(f"held out {row}" for row in GOOD_ROWS), *rows])

    with pytest.raises(DataInvalid) as refused:
        read(tmp_path)

    assert want in str(refused.value)


@pytest.mark.parametrize("cell", [1, True, 0.5, {"food": 1}, [["food"]]])
def test_a_cell_that_is_no_list_is_refused(tmp_path: Path, cell: Any):
    rows = [{"text": "a", "about": ["food"]}, {"text": "odd", "about": cell}]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    with pytest.raises(DataInvalid, match=r'train\.jsonl:2, column "about": got '):
        read(tmp_path, ending="jsonl")


@pytest.mark.parametrize(
    "train, validation, want",
    [
        (GOOD_ROWS[:2], GOOD_ROWS, 'has the label "price"; add such rows or remove the label'),
        (GOOD_ROWS, ["a\tfood", "b\tfood"], 'has the labels ["food"], so no model can be distinguished from chance'),
        (GOOD_ROWS, [], "has no rows; expected at least one"),
    ],
)
def test_a_split_without_the_labels_it_needs_is_refused(
    tmp_path: Path, train: list[str], validation: list[str], want: str
):
    write(tmp_path / "train.tsv", train)
    write(tmp_path / "dev.tsv", [f"held out {row}" for row in validation])

    with pytest.raises(DataInvalid) as refused:
        read(tmp_path)

    assert want in str(refused.value)


def a_truth(rows: int = 300, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((rows, 3)) < [0.6, 0.3, 0.1]


def test_metrics_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, hamming_loss

    truth = a_truth()
    logits = (np.random.default_rng(1).normal(size=truth.shape) + 2 * truth - 1).astype(np.float32)
    model = MultiLabelled(a_task(), "validation", logits, truth)

    assert model.metrics == pytest.approx(
        {
            "microF1": f1_score(truth, logits > 0, average="micro"),
            "macroF1": f1_score(truth, logits > 0, average="macro"),
            "subsetAccuracy": accuracy_score(truth, logits > 0),
            "hammingLoss": hamming_loss(truth, logits > 0),
        }
    )


def test_a_label_that_is_never_predicted_is_a_warning():
    truth = a_truth()
    logits = np.where(truth, 1, -1).astype(np.float32)
    logits[:, 2] = -1

    assert MultiLabelled(a_task(), "validation", logits, truth).warnings == [
        "it never predicts 1 of 3 labels of validation: price"
    ]
    with_comma = a_task().model_copy(update={"labels": ["food", "service", "price, value"]})
    assert MultiLabelled(with_comma, "validation", logits, truth).warnings == [
        'it never predicts 1 of 3 labels of validation: "price, value"'
    ]


@pytest.mark.parametrize("metric", ["microF1", "macroF1"])
@pytest.mark.parametrize("seed", range(5))
def test_a_guesser_is_doubted_and_a_model_is_not(metric: str, seed: int):
    truth, dice = a_truth(seed=seed), np.random.default_rng(seed + 100)
    guesses = dice.permutation(truth)
    noisy = truth ^ (dice.random(truth.shape) < 0.1)

    assert doubt_of(truth, guesses, metric=metric) is not None
    assert doubt_of(truth, noisy, metric=metric) is None


def test_answering_the_frequent_labels_for_every_row_is_doubted():
    truth = a_truth()
    constant = np.broadcast_to([True, False, False], truth.shape)

    doubt = doubt_of(truth, constant, metric="microF1")

    assert doubt is not None
    assert doubt.startswith("micro F1 0.")
    assert "on 300 validation rows could be luck: always answering the same labels reaches up to 0." in doubt


def test_labels_in_another_order_are_found_and_noise_is_not():
    truth = a_truth()
    logits = (np.random.default_rng(1).normal(size=truth.shape) + 3 * truth).astype(np.float32)
    turned = logits[:, [1, 2, 0]]

    order = best_order(truth, turned)

    assert order is not None
    assert (turned[:, list(order)] == logits).all()
    assert best_order(truth, logits) is None
    assert all(best_order(truth, np.random.default_rng(seed).permutation(logits)) is None for seed in range(5))


class TestTheAdapter:
    pytestmark = pytest.mark.models

    @pytest.fixture
    def adapter(self) -> Any:
        from distillchain_trainer.tasks import adapter_for

        return adapter_for(a_task(), StageWarnings())

    def test_soft_targets_are_a_distribution_for_each_label(self, adapter: Any):
        """The independent formula: KL of two Bernoulli distributions, the mean over the labels."""
        import torch

        from distillchain_api.resource.distillation import Distillation
        from distillchain_trainer.stage.row_losses import row_losses_of

        torch.manual_seed(0)
        student, teacher = torch.randn(2, 4, 3, dtype=torch.float64)
        compared = {"teacher": teacher, "targets": torch.zeros(4, 3, dtype=torch.bool)}
        answer = type("Answer", (), {"logits": student})

        losses = row_losses_of(adapter, Distillation(temperature=2.0))(answer, compared)

        p, q = torch.sigmoid(teacher / 2), torch.sigmoid(student / 2)
        want = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
        assert torch.allclose(losses, want)

    def test_the_label_loss_is_the_one_of_transformers(self, adapter: Any):
        import torch

        logits, targets = torch.randn(5, 3), torch.from_numpy(table_of([[0], [], [1, 2], [0, 1, 2], [2]], 3))

        own = adapter.label_loss(logits, targets).mean()

        assert torch.isclose(own, torch.nn.BCEWithLogitsLoss()(logits, targets.float()))

    @pytest.mark.parametrize("named", [True, False])
    def test_an_unnamed_teacher_in_another_order_is_refused_with_the_names(self, adapter: Any, named: bool):
        truth = a_truth()
        logits = (np.random.default_rng(1).normal(size=truth.shape) + 4 * truth - 2).astype(np.float32)
        measured = MultiLabelled(a_task(), "validation", logits[:, [1, 2, 0]], truth)
        teacher = heads.SequenceModel(None, None, "start", pretrained=True, named=named)

        with pytest.raises(GateNotMet if named else LabelMismatch) as refused:
            adapter.check_teacher(teacher, measured, uri="hf://org/teacher", remedy="fine-tune it")

        assert named or "as service, price, food: its labels are probably in that order" in str(refused.value)
