"""Label smoothing and class weights: by hand, against torch, and the same loss however the rows are cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillchain_api.resource.training import Training
from later import Later

torch = Later("torch")
terms = Later("distillchain_trainer.objectives.label_term")

CPU = "cpu"


def a_term(targets: Any = None, classes: tuple[str, ...] = ("a", "b", "c"), **fields: Any) -> Any:
    targets = torch.tensor([0]) if targets is None else targets
    return terms.label_term(Training(**fields), classes, targets, device=CPU)


def test_label_smoothing_by_hand():
    # p = (3/4, 1/4), class 0, e = 0.2: 0.8 * -ln(3/4) + 0.1 * (-ln(3/4) - ln(1/4)) = 0.258914 + 0.138629.
    logits, targets = torch.tensor([[math.log(3), 0.0]]), torch.tensor([0])

    got = a_term(classes=("a", "b"), label_smoothing=0.2).losses(logits, targets)

    assert got.item() == pytest.approx(0.9 * 0.287682 + 0.1 * 1.386294, abs=1e-6)


def test_class_weights_by_hand():
    # p = (3/4, 1/4): class 0 costs 2 * 0.287682, class 1, which is not named, 1 * 1.386294.
    logits, targets = torch.tensor([[math.log(3), 0.0]] * 2), torch.tensor([0, 1])

    got = a_term(classes=("a", "b"), class_weights={"a": 2.0}).losses(logits, targets)

    assert got.tolist() == pytest.approx([0.575364, 1.386294], abs=1e-6)


def test_balanced_weights_by_hand():
    # 6 labelled rows and 3 classes: 6 / (3 * 4) and 6 / (3 * 2); the third class has no row.
    targets = torch.tensor([0, 0, 0, 0, 1, 1, -100])

    assert a_term(targets, balanced_classes=True).weights.tolist() == [0.5, 1.0, 0.0]


@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=5))
@settings(deadline=None, max_examples=20)
def test_balanced_weights_have_a_mean_of_1_over_the_rows_and_give_each_class_the_same(counts: list[int]):
    targets = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])

    weights = terms.balanced_weights(targets, len(counts))

    assert weights[targets].mean().item() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(weights.numpy() * counts, len(targets) / len(counts), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weights", [None, {"a": 0.5, "c": 3.0}])
def test_it_is_the_formula_and_what_torch_computes(smoothing: float, weights: dict[str, float] | None):
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 3, dtype=torch.float64), torch.randint(0, 3, (7,))
    w = torch.tensor([0.5, 1.0, 3.0] if weights else [1.0] * 3, dtype=torch.float64)
    log_p = logits.numpy() - np.log(np.exp(logits.numpy()).sum(-1, keepdims=True))
    smoothed = (1 - smoothing) * -log_p[np.arange(7), targets] + smoothing / 3 * -log_p.sum(-1)

    got = a_term(label_smoothing=smoothing, class_weights=weights).losses(logits, targets)

    np.testing.assert_allclose(got.numpy(), w.numpy()[targets] * smoothed)
    # Only with one of the two: torch would also weigh the share that each row gives to the other classes.
    if not (smoothing and weights):
        of_torch = torch.nn.functional.cross_entropy(logits, targets, weight=w, label_smoothing=smoothing)
        torch.testing.assert_close(got.sum() / w[targets].sum(), of_torch)


def test_a_smoothed_row_of_a_frequent_class_is_not_taught_the_rare_one():
    # 97 rows of a, 3 of b: balanced, b weighs 32 times as much as a.
    targets = torch.tensor([0] * 97 + [1] * 3)
    term = a_term(targets, ("a", "b"), balanced_classes=True, label_smoothing=0.1)
    # The probability of a that costs a row of a least.
    shares = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)

    losses = term.losses(torch.stack([shares.log(), (1 - shares).log()], dim=-1), torch.zeros(99, dtype=torch.int64))

    assert shares[losses.argmin()].item() == pytest.approx(0.95)


@given(cut=st.integers(1, 11), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_the_loss_of_a_step_does_not_depend_on_how_its_rows_are_cut(cut: int, seed: int):
    torch.manual_seed(seed)
    logits, targets = torch.randn(12, 3, requires_grad=True), torch.randint(0, 3, (12,))
    term = a_term(targets, balanced_classes=True, label_smoothing=0.1)

    (whole,) = torch.autograd.grad(term.losses(logits, targets).sum() / 12, logits)
    parts = [term.losses(logits[rows], targets[rows]).sum() / 12 for rows in (slice(0, cut), slice(cut, 12))]
    (in_parts,) = torch.autograd.grad(sum(parts), logits)

    torch.testing.assert_close(in_parts, whole)


def test_a_row_without_a_label_costs_nothing_in_any_shape():
    logits, targets = torch.randn(2, 4, 3), torch.tensor([[0, -100, 2, -1], [1, 1, -1, 0]])

    got = a_term(label_smoothing=0.3, class_weights={"b": 2.0}).losses(logits, targets)

    assert got.shape == (2, 4)
    assert (got == 0).tolist() == (targets < 0).tolist()


def test_bfloat16_logits_give_a_finite_loss_in_float32():
    logits = torch.tensor([[3e4, -3e4, 0.0]], dtype=torch.bfloat16)

    got = a_term(label_smoothing=0.1, balanced_classes=True).losses(logits, torch.tensor([1]))

    assert got.dtype is torch.float32
    assert got.isfinite().all()


def test_the_gradient_is_the_slope_of_the_loss():
    logits = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    term = a_term(label_smoothing=0.2, class_weights={"a": 2.0})

    assert torch.autograd.gradcheck(lambda x: term.losses(x, torch.tensor([0, 2, -100])), (logits,))


def test_without_these_fields_the_task_computes_its_own_loss():
    assert a_term().is_plain
    assert not a_term(label_smoothing=0.1).is_plain
    assert not a_term(balanced_classes=True).is_plain
