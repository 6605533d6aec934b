"""The mean of several teachers: by hand, by another formula, and its limits."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from distillchain_trainer.engine.passes import teacher_average
from distillchain_trainer.engine.passes.node_array import NodeArray
from distillchain_trainer.engine.passes.teacher_average import Mean, average, mean_outputs
from distillchain_trainer.engine.passes.teacher_outputs import TeacherOutputs
from distillchain_trainer.engine.ranks.world import ALONE
from distillchain_trainer.objectives import load_objective

pytestmark = pytest.mark.models


def outputs_of(
    values: list[list[float]], *, columns: tuple[int, ...] | None = None, answered: list[bool] | None = None
) -> TeacherOutputs:
    array: NDArray[np.float32] = np.array(values, dtype=np.float32)
    known = None if answered is None else np.array(answered)
    return TeacherOutputs(array, np.arange(len(array)), columns, reused=True, elapsed_s=1.0, answered=known)


def test_probabilities_of_classes_are_averaged_by_hand():
    """Odds of 3:1 and 1:9 are 0.75 and 0.1; by 2:1 the mean is (1.5 + 0.1) / 3 = 8/15, which is odds of 8:7."""
    outputs = torch.tensor([[[math.log(3), 0.0]], [[0.0, math.log(9)]]], dtype=torch.float64)

    found = mean_outputs(outputs, torch.tensor([2 / 3, 1 / 3]).double(), mean="Classes", temperature=1.0)

    assert (found[0, 0] - found[0, 1]).item() == pytest.approx(math.log(8 / 7))
    assert found.softmax(-1)[0].tolist() == pytest.approx([8 / 15, 7 / 15])


def test_the_temperature_softens_before_the_mean():
    """Odds of 9:1 at temperature 2 are 3:1, and 1:81 are 1:9; so the mean is that of the case above."""
    outputs = torch.tensor([[[math.log(9), 0.0]], [[0.0, math.log(81)]]], dtype=torch.float64)

    found = mean_outputs(outputs, torch.tensor([2 / 3, 1 / 3]).double(), mean="Classes", temperature=2.0)

    assert (found / 2.0).softmax(-1)[0].tolist() == pytest.approx([8 / 15, 7 / 15])


def test_each_label_has_a_mean_of_its_own():
    outputs = torch.tensor([[[math.log(3), 0.0]], [[math.log(1 / 9), math.log(4)]]], dtype=torch.float64)

    found = mean_outputs(outputs, torch.tensor([0.5, 0.5]).double(), mean="Labels", temperature=1.0)

    assert found.sigmoid()[0].tolist() == pytest.approx([(0.75 + 0.1) / 2, (0.5 + 0.8) / 2])


def test_numbers_are_averaged_as_they_are():
    outputs = torch.tensor([[[1.0]], [[4.0]]], dtype=torch.float64)

    assert mean_outputs(outputs, torch.tensor([0.75, 0.25]).double(), mean="Numbers", temperature=3.0).item() == 1.75


@pytest.mark.parametrize("mean", ["Classes", "Labels"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_mean_of_plain_probabilities(mean: Mean, temperature: float):
    dice = torch.Generator().manual_seed(3)
    outputs = 5 * torch.randn(3, 40, 6, generator=dice, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5]).double()
    of = torch.sigmoid if mean == "Labels" else lambda logits: logits.softmax(-1)

    found = mean_outputs(outputs, weights, mean=mean, temperature=temperature)

    want = sum(weight * of(logits / temperature) for weight, logits in zip(weights, outputs, strict=True))
    torch.testing.assert_close(of(found / temperature), want)


@pytest.mark.parametrize("mean", ["Classes", "Labels", "Numbers"])
def test_teachers_that_agree_are_one_teacher(mean: Mean):
    """Up to a constant for classes, which means nothing. Also where a probability rounds to 0 and to 1."""
    outputs = torch.tensor([[3.0, -900.0, 1.0], [900.0, 0.0, 1.0]]).double()

    found = mean_outputs(torch.stack([outputs, outputs]), torch.tensor([0.5, 0.5]), mean=mean, temperature=2.0)

    shift = outputs - found
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift) if mean == "Classes" else torch.zeros_like(shift))


@pytest.mark.parametrize("objective", ["SoftTargets", "ReverseKL", "JensenShannon", "Decoupled"])
def test_every_objective_takes_the_mean_as_it_takes_logits(objective: str):
    """Its value is that for logits which were written down from the mean of the probabilities."""
    dice = torch.Generator().manual_seed(5)
    student, teachers = torch.randn(9, 4, generator=dice), torch.randn(2, 9, 4, generator=dice)
    weights, temperature = torch.tensor([0.7, 0.3]), 3.0
    probabilities = 0.7 * (teachers[0] / temperature).softmax(-1) + 0.3 * (teachers[1] / temperature).softmax(-1)
    loaded = load_objective(objective)
    defaults = {"JensenShannon": {"beta": 0.5}, "Decoupled": {"target_weight": 1.0, "non_target_weight": 8.0}}

    def losses(teacher: torch.Tensor) -> torch.Tensor:
        true = torch.zeros(9, dtype=torch.long)
        return loaded.losses(
            student, teacher, temperature=temperature, parameters=defaults.get(objective, {}), true_class=true
        )

    found = losses(mean_outputs(teachers, weights, mean="Classes", temperature=temperature))

    torch.testing.assert_close(found, losses(temperature * probabilities.log()))


def test_columns_are_brought_into_the_order_of_the_task_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In blocks that do not divide the rows."""
    monkeypatch.setattr(teacher_average, "BLOCK_BYTES", 2 * 3 * 4)
    plain = [[1.0, 2.0, 3.0], [0.0, -1.0, 5.0], [2.0, 2.0, 2.0]]
    turned = [[row[2], row[0], row[1]] for row in plain]

    found = average(
        [outputs_of(plain), outputs_of(turned, columns=(1, 2, 0))],
        [0.5, 0.5],
        mean_of=partial(mean_outputs, mean="Numbers", temperature=1.0),
        file=NodeArray(tmp_path / "mean.f32", ALONE),
    )

    assert found.values.tolist() == plain
    assert (found.columns, found.elapsed_s) == (None, 2.0)


def test_an_item_counts_only_if_all_teachers_have_read_it(tmp_path: Path):
    teachers = [
        outputs_of([[1.0]] * 3, answered=[True, True, False]),
        outputs_of([[1.0]] * 3, answered=[True, False, True]),
    ]

    mean_of = partial(mean_outputs, mean="Numbers", temperature=1.0)
    found = average(teachers, [0.5, 0.5], mean_of=mean_of, file=NodeArray(tmp_path / "m.f32", ALONE))

    assert found.answered is not None
    assert found.answered.tolist() == [True, False, False]
