"""Regression in the trainer: numbers in rows, metrics, chance, and heads that train in standard units."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillchain_api.tasks.regression import Regression
from distillchain_trainer.data.split import Split
from distillchain_trainer.errors import CheckpointInvalid, DataInvalid
from distillchain_trainer.stage_warnings import StageWarnings
from distillchain_trainer.tasks.regression.chance import doubt_of
from distillchain_trainer.tasks.regression.evaluate import Predicted
from distillchain_trainer.tasks.regression.rows import number_of, read_task_data
from distillchain_trainer.tasks.sequences.head import REGRESSION, Head

ROWS = ["good\t4.5", "bad\t-1e2", "fine\t.5", "dull\t 3 "]


def a_task(folder: Path | str = "/nowhere", *, ending: str = "tsv", **task: Any) -> Regression:
    splits = {"train": f"train.{ending}", "validation": f"dev.{ending}"}
    dataset = {"uri": f"file://{folder}", "splits": splits, "text": ["text"], "label": "score"}
    return Regression.parse({"type": "Regression", "dataset": dataset, **task})


def write(path: Path, rows: list[str]) -> None:
    path.write_text("text\tscore\n" + "".join(f"{row}\n" for row in rows))


def read(folder: Path, **task: Any) -> dict[str, Split]:
    return read_task_data(
        a_task(folder, **task),
        endpoint_url=None,
        region=None,
        folder=folder / "scratch",
        warnings=StageWarnings(),
    ).splits


def test_numbers_are_read_from_text(tmp_path: Path):
    write(tmp_path / "train.tsv", ROWS)
    write(tmp_path / "dev.tsv", [f"held out {row}" for row in ROWS])

    assert read(tmp_path)["train"].targets == [4.5, -100.0, 0.5, 3.0]


@pytest.mark.parametrize(
    "cell, want",
    [
        ("3,5", 'got "3,5", expected a number such as 3.5; write a decimal point instead of a comma, and no separators of thousands'),
        ("1,000.5", "no separators of thousands"),
        ("NaN", 'got "NaN", expected a number such as 3.5; fill the cell or remove the row'),
        ("inf", "fill the cell or remove the row"),
        ("1e999", "expected a finite number up to 1e+30"),
        ("1_000", 'got "1_000", expected a number such as 3.5; correct the row or spec.task.dataset.label'),
        ("good", "correct the row or spec.task.dataset.label"),
        ("", "the cell is empty; fill it or remove the row"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_number_is_named(tmp_path: Path, cell: str, want: str):
    write(tmp_path / "train.tsv", [*ROWS, f"odd\t{cell}"])
    write(tmp_path / "dev.tsv", [f"held out {row}" for row in ROWS])

    with pytest.raises(DataInvalid) as refused:
        read(tmp_path)

    assert 'train.tsv:6, column "score": ' in str(refused.value)
    assert want in str(refused.value)


@pytest.mark.parametrize("cell", [math.nan, math.inf, None, True, [1.0], {"score": 1}, 10**400, "٣"])
def test_other_cells_are_refused(cell: object):
    with pytest.raises(ValueError, match=r"expected|the cell is empty"):
        number_of(cell)


@pytest.mark.parametrize(
    "role, why", [("train", "a student would learn nothing"), ("dev", "distinguished from chance")]
)
def test_a_split_with_one_number_is_refused(tmp_path: Path, role: str, why: str):
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.tsv", [f"{name} a\t1", f"{name} b\t{1 if name == role else 2}"])

    with pytest.raises(DataInvalid, match=f"has the number 1, so .*{why}"):
        read(tmp_path)


@pytest.mark.parametrize("first, is_warned", [(1.7e9, True), (1e5, False), (0, False)])
def test_numbers_that_float32_hardly_tells_apart_are_a_warning(tmp_path: Path, first: float, is_warned: bool):
    # Times of ten minutes, in seconds.
    write(tmp_path / "train.tsv", [f"text {row}\t{first + 100 * row}" for row in range(7)])
    write(tmp_path / "dev.tsv", [f"held out {row}\t{first + row}" for row in range(2)])
    warnings = StageWarnings()

    read_task_data(a_task(tmp_path), endpoint_url=None, region=None, folder=tmp_path / "rows", warnings=warnings)

    assert warnings.sentences == is_warned * [
        "spec.task.dataset.label: the numbers of train spread by 200 around 1700000300, but models compute in float32, "
        "which rounds such numbers to multiples of 128; subtract 1700000300 from all numbers of the data"
    ]


def a_model(predicted: Any, truth: Any, **task: Any) -> Predicted:
    outputs = np.asarray(predicted, dtype=np.float32)[:, None]
    return Predicted(a_task(**task), "validation", outputs, np.asarray(truth, dtype=np.float64))


def test_metrics_are_those_of_scipy_and_scikit_learn():
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    dice = np.random.default_rng(0)
    truth = dice.integers(0, 10, 200) / 2
    predicted = (truth + dice.normal(0, 1, 200)).astype(np.float32).astype(np.float64)

    assert a_model(predicted, truth).metrics == pytest.approx(
        {
            "pearson": pearsonr(truth, predicted)[0],
            "spearman": spearmanr(truth, predicted)[0],
            "mse": mean_squared_error(truth, predicted),
            "mae": mean_absolute_error(truth, predicted),
        }
    )


def test_a_head_with_several_outputs_is_refused_with_a_remedy():
    head = Head(REGRESSION, "predict a number", ("number",), texts=1, max_length=8)

    head.check_outputs(1, "config.json of a")
    with pytest.raises(CheckpointInvalid, match=r"got 2, expected 1; .* use a checkpoint that has one, or one without"):
        head.check_outputs(2, "config.json of a")


def test_a_constant_has_no_correlation():
    metrics = a_model([0.1] * 50, range(50)).metrics

    assert (metrics["pearson"], metrics["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "mse", "mae"])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6])
def test_a_guesser_is_doubted_and_a_model_is_not(metric: str, unit: float):
    dice = np.random.default_rng(0)
    truth = dice.normal(5, 2, 300) * unit
    good = truth + dice.normal(0, 1, 300) * unit

    assert doubt_of(a_task(metric=metric), truth, dice.permutation(truth)) is not None
    assert doubt_of(a_task(metric=metric), truth, np.full(300, truth.mean())) is not None
    assert doubt_of(a_task(metric=metric), truth, good) is None


def test_the_doubt_is_one_sentence_in_the_unit_of_the_metric():
    truth = np.tile([0.0, 10.0], 50)

    assert doubt_of(a_task(metric="mse"), truth, np.full(100, 4.0)) == (
        "mean squared error 26 on 100 validation rows could be luck: always answering the mean reaches 25, and so few "
        "rows need less than 23.36"
    )


def test_numbers_in_another_unit_are_a_warning():
    truth = np.linspace(0, 5, 100)

    assert a_model(truth, truth).warnings == []
    assert a_model(truth / 5, truth).warnings == [
        "its numbers on validation are probably in another unit than the data: mse 5.36, while always answering the "
        "mean reaches 2.125"
    ]


def test_the_predictions_of_a_file_are_those_that_were_measured(tmp_path: Path):
    # Neighbours of float32 around a time in seconds, a ratio and a small share.
    first = np.float32([1.7e9, 4 / 3, 1e-5])
    outputs = np.concatenate([first, np.nextafter(first, np.float32(np.inf))])

    a_model(outputs, range(6)).write_predictions(tmp_path / "predictions.jsonl")

    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["predicted"] for line in lines] == outputs.tolist()


class TestStandardUnits:
    """The head trains in standard units, and the saved checkpoint gives the units of the data."""

    pytestmark = pytest.mark.models

    @pytest.fixture(params=["bert", "roberta", "qwen2"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def a_student(self, kind: str, *, new_head: bool) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        from distillchain_trainer.tasks.sequences.heads import SequenceModel

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        more = {"num_key_value_heads": 2} if kind == "qwen2" else {}
        config = AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, num_labels=1, **sizes, **more)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        return SequenceModel(model, None, "start", pretrained=False, new_head=new_head)

    def answers(self, model: Any) -> Any:
        import torch

        ids = torch.tensor([[2, 5, 7, 3], [2, 9, 11, 3]])
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    def test_a_new_head_starts_near_the_mean_and_an_old_one_stays_as_it_is(self, kind: str):
        import torch

        from distillchain_trainer.tasks.regression.scale import Scale, put_in_standard_units

        new, old = (self.a_student(kind, new_head=new) for new in (True, False))
        before = self.answers(old.model)

        for student in (new, old):
            put_in_standard_units(student, Scale(1000.0, 50.0))

        assert torch.allclose(self.answers(old.model), before, atol=1e-3)
        # A decoder's head has no bias, so the mean cannot be its start.
        assert kind == "qwen2" or (self.answers(new.model) - 1000).abs().max() < 150

    def test_plain_transformers_gives_the_same_numbers(self, kind: str, tmp_path: Path):
        import torch
        from transformers import AutoModelForSequenceClassification

        from distillchain_trainer.tasks.regression.scale import Scale, fold, put_in_standard_units

        student = self.a_student(kind, new_head=True)
        put_in_standard_units(student, Scale(1000.0, 50.0))
        before = self.answers(student.model)

        for _ in range(2):  # the second time must change nothing
            fold(student.model)
        student.model.save_pretrained(tmp_path)

        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.allclose(self.answers(student.model), before, rtol=1e-5)
        assert torch.allclose(self.answers(loaded.eval()), before, rtol=1e-5)
        assert "output_scale" not in json.dumps(sorted(loaded.state_dict()))
