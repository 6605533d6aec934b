"""Every objective: a value worked out by hand, an independent formula, and what must hold for all logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

from distillchain_api.objectives import DEFAULTS, WITHOUT_TEMPERATURE, Objective
from later import Later

torch = Later("torch")
objectives = Later("distillchain_trainer.objectives")

NAMES = get_args(Objective)
ON_PROBABILITIES = [name for name in NAMES if name != "LogitMSE"]
LN3 = math.log(3)

logits = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4), min_size=3, max_size=3)
temperatures = st.floats(0.5, 20)


def loss(name: str, student: Any, teacher: Any, *, temperature: float = 1.0, **more: Any) -> Any:
    """[...] of one objective, with its default parameters and class 0 as the true one unless stated otherwise."""
    student, teacher = (
        torch.as_tensor(x, dtype=torch.float64) if isinstance(x, list) else x for x in (student, teacher)
    )
    true_class = more.pop("true_class", torch.zeros(student.shape[:-1], dtype=torch.long))
    parameters = {**DEFAULTS.get(name, {}), **more}
    return objectives.load_objective(name).losses(
        student, teacher, temperature=temperature, parameters=parameters, true_class=true_class
    )


# Teacher logits (ln 3, 0): p = (3/4, 1/4). Student logits (0, 0): q = (1/2, 1/2). m = (5/8, 3/8).
BY_HAND = {
    # 3/4 ln(3/2) + 1/4 ln(1/2)
    "SoftTargets": 0.130812,
    # 1/2 ln(2/3) + 1/2 ln 2 = -0.202733 + 0.346574
    "ReverseKL": 0.143841,
    # 1/2 [3/4 ln(6/5) + 1/4 ln(2/3)] + 1/2 [1/2 ln(4/5) + 1/2 ln(4/3)] = (0.035375 + 0.032269) / 2
    "JensenShannon": 0.033822,
    # (ln 3)^2 / 2
    "LogitMSE": 0.603474,
    # Two classes: the binary part alone, which is SoftTargets.
    "Decoupled": 0.130812,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_value_worked_out_by_hand(name: str):
    assert loss(name, [[0.0, 0.0]], [[LN3, 0.0]]).item() == pytest.approx(BY_HAND[name], abs=1e-6)


@pytest.mark.parametrize("name", ON_PROBABILITIES)
def test_at_temperature_two_logits_twice_as_large_cost_four_times_as_much(name: str):
    got = loss(name, [[0.0, 0.0]], [[2 * LN3, 0.0]], temperature=2.0).item()

    assert got == pytest.approx(4 * BY_HAND[name], abs=4e-6)


def test_decoupled_by_hand_with_three_classes():
    # Teacher p = (1/2, 3/8, 1/8), student q = (1/3, 1/3, 1/3), true class 0.
    # Binary: 1/2 ln(3/2) + 1/2 ln(3/4) = 0.058892. Others: (3/4, 1/4) against (1/2, 1/2): 0.130812.
    teacher = [[math.log(4), math.log(3), 0.0]]

    got = loss("Decoupled", [[0.0, 0.0, 0.0]], teacher, target_weight=1.0, non_target_weight=8.0)

    assert got.item() == pytest.approx(0.058892 + 8 * 0.130812, abs=1e-5)


def kl(p: NDArray[Any], q: NDArray[Any]) -> NDArray[Any]:
    return rel_entr(p, q).sum(-1)  # type: ignore[no-any-return]  # scipy has no types


def decoupled(p: NDArray[Any], q: NDArray[Any]) -> NDArray[Any]:
    """As in the paper's equations 3 to 7, from probabilities, for true class 0."""
    binary = [np.stack([x[:, 0], x[:, 1:].sum(-1)], -1) for x in (p, q)]
    others = [x[:, 1:] / x[:, 1:].sum(-1, keepdims=True) for x in (p, q)]
    return kl(*binary) + 8 * kl(*others)


FORMULAS: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "SoftTargets": kl,
    "ReverseKL": lambda p, q: kl(q, p),
    "JensenShannon": lambda p, q: 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2),
    "Decoupled": decoupled,
}


@pytest.mark.parametrize("name", ON_PROBABILITIES)
@given(student=logits, teacher=logits, temperature=temperatures)
@settings(deadline=None, max_examples=20)
def test_it_is_the_formula_on_probabilities(name: str, student: Any, teacher: Any, temperature: float):
    p, q = (softmax(np.array(x) / temperature, axis=-1) for x in (teacher, student))
    want = temperature**2 * FORMULAS[name](p, q)

    got = loss(name, student, teacher, temperature=temperature).numpy()

    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6 * temperature**2)


@given(student=logits, teacher=logits)
@settings(deadline=None, max_examples=20)
def test_logit_mse_is_the_mean_square_of_numpy(student: Any, teacher: Any):
    want = np.mean((np.array(student) - np.array(teacher)) ** 2, axis=-1)

    np.testing.assert_allclose(loss("LogitMSE", student, teacher).numpy(), want)


@pytest.mark.parametrize("name", NAMES)
@given(student=logits, shift=st.floats(-5, 5), temperature=temperatures)
@settings(deadline=None, max_examples=15)
def test_equal_logits_cost_nothing_and_only_logit_mse_sees_a_shift(
    name: str, student: Any, shift: float, temperature: float
):
    shifted = (np.array(student) + shift).tolist()

    got = loss(name, student, shifted, temperature=temperature).numpy()

    want = shift**2 if name == "LogitMSE" else 0.0
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@given(student=logits, teacher=logits)
@settings(deadline=None, max_examples=15)
def test_no_loss_is_negative(name: str, student: Any, teacher: Any):
    assert loss(name, student, teacher).min().item() >= -1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_gradient_is_the_slope_of_the_loss(name: str, temperature: float):
    torch.manual_seed(1)
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 4, dtype=torch.float64)
    true_class = torch.tensor([2, -1, 0])

    assert torch.autograd.gradcheck(
        lambda x: loss(name, x, teacher, temperature=temperature, true_class=true_class), (student,)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_gets_no_gradient(name: str):
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))

    loss(name, student, teacher).sum().backward()

    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_extreme_logits_give_a_finite_loss_and_gradient_in_float32(name: str, kind: str):
    sure = [[3e4, 0.0, -3e4], [0.0, 3e4, 0.0], [-3e4, 0.0, 3e4], [0.0, 0.0, 0.0]]
    student = torch.tensor(sure, dtype=getattr(torch, kind), requires_grad=True)
    teacher = torch.tensor(sure[::-1], dtype=getattr(torch, kind))

    losses = loss(name, student, teacher)
    losses.sum().backward()

    assert losses.dtype is torch.float32
    assert losses.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_the_shape_of_the_logits_without_the_classes(name: str):
    torch.manual_seed(2)
    student, teacher = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    true_class = torch.randint(-1, 3, (2, 5))

    together = loss(name, student, teacher, true_class=true_class)

    alone = [loss(name, s, t, true_class=c) for s, t, c in zip(student, teacher, true_class, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone))


# T^2 KL(p, q) tends to half the mean square of the difference of centred logits (Hinton et al., section 2.1), in both
# directions. JensenShannon's two parts are (1 - beta)^2 and beta^2 of that, so its limit is beta (1 - beta) of it.
LIMITS = {"SoftTargets": 0.5, "ReverseKL": 0.5, "JensenShannon": 0.25 * 0.5}


@pytest.mark.parametrize("name", LIMITS)
@given(student=logits, teacher=logits)
@settings(deadline=None, max_examples=15)
def test_at_high_temperature_it_tends_to_the_loss_of_centred_logits(name: str, student: Any, teacher: Any):
    z, v = (np.array(x) - np.mean(x, axis=-1, keepdims=True) for x in (student, teacher))

    got = loss(name, student, teacher, temperature=1e4)

    want = LIMITS[name] * loss("LogitMSE", z.tolist(), v.tolist())
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


@given(student=logits, teacher=logits)
@settings(deadline=None, max_examples=15)
def test_jensen_shannon_tends_to_both_kl_divergences(student: Any, teacher: Any):
    # The limit is slow where one model finds a class almost impossible: within +-5, ratios are far below 1e7.
    student, teacher = ((np.array(x) / 4).tolist() for x in (student, teacher))
    near_0 = loss("JensenShannon", student, teacher, beta=1e-7) / 1e-7
    near_1 = loss("JensenShannon", student, teacher, beta=1 - 1e-7) / 1e-7

    torch.testing.assert_close(near_0, loss("SoftTargets", student, teacher), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(near_1, loss("ReverseKL", student, teacher), rtol=1e-2, atol=1e-3)


@given(student=logits, teacher=logits, temperature=temperatures)
@settings(deadline=None, max_examples=15)
def test_jensen_shannon_is_bounded_and_symmetric_at_one_half(student: Any, teacher: Any, temperature: float):
    one, other = (
        loss("JensenShannon", *pair, temperature=temperature) for pair in ((student, teacher), (teacher, student))
    )

    torch.testing.assert_close(one, other)
    assert one.max().item() <= temperature**2 * math.log(2) + 1e-9


@given(student=logits, teacher=logits)
@settings(deadline=None, max_examples=15)
def test_decoupled_with_the_factor_of_the_paper_is_soft_targets(student: Any, teacher: Any):
    """Equation 7: KL = TCKD + (1 - p_true) NCKD."""
    for row in range(3):
        factor = 1 - softmax(np.array(teacher[row]))[0]
        got = loss("Decoupled", [student[row]], [teacher[row]], target_weight=1.0, non_target_weight=factor)

        torch.testing.assert_close(got, loss("SoftTargets", [student[row]], [teacher[row]]), rtol=1e-6, atol=1e-6)


def test_decoupled_takes_the_teachers_class_for_a_row_without_a_label():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)

    unlabelled = loss("Decoupled", student, teacher, true_class=torch.full((4,), -100))

    torch.testing.assert_close(unlabelled, loss("Decoupled", student, teacher, true_class=teacher.argmax(-1)))
    assert not torch.equal(unlabelled, loss("Decoupled", student, teacher, true_class=teacher.argmin(-1)))


@pytest.mark.parametrize("name", sorted(set(ON_PROBABILITIES) - set(WITHOUT_TEMPERATURE)))
def test_two_logits_z_and_0_give_the_loss_of_a_sigmoid(name: str):
    """MultiLabel compares each label in this form."""
    z, v = torch.linspace(-3, 3, 7, dtype=torch.float64), torch.linspace(2, -1, 7, dtype=torch.float64)
    student, teacher = (torch.stack([x, torch.zeros_like(x)], -1) for x in (z, v))
    p, q = (np.stack([s, 1 - s], -1) for s in (torch.sigmoid(v).numpy(), torch.sigmoid(z).numpy()))

    want = kl(p, q) if name == "Decoupled" else FORMULAS[name](p, q)

    np.testing.assert_allclose(loss(name, student, teacher).numpy(), want, rtol=1e-9)
