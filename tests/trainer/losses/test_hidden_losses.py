"""HiddenMSE and ValueRelation as formulas: by hand, independently in numpy, limits and gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from later import Later

torch = Later("torch")
mse = Later("distillchain_trainer.hidden_states.hidden_mse")
relation = Later("distillchain_trainer.hidden_states.value_relation")

ROWS, TOKENS = 3, 5


def a_mask() -> Any:
    return torch.arange(TOKENS) < torch.tensor([[5], [3], [1]])


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_hidden_mse_by_hand():
    # Token 1: (1, 2) @ [[1], [1]] = 3 against 1: 4. Token 2: 0 against 3: 9. The third token is padding.
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[1.0], [3.0], [0.0]]])
    inside = torch.tensor([[True, True, False]])

    got = mse.hidden_mse([student], [teacher], torch.ones(2, 1), inside=inside)

    assert got.tolist() == [6.5]


def test_value_relation_by_hand():
    # One head of width 1. Teacher values (1, 0): the first token relates to both as softmax(1, 0), the second evenly.
    # Student values (0, 0): evenly. KL = p ln(2p) + (1 - p) ln(2(1 - p)) with p = 0.731059, and 0 for the second.
    student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]])
    p = 0.731059
    want = (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))) / 2

    got = relation.relation_loss(student, teacher, heads=1, inside=None)

    assert got.item() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("padded", [False, True])
def test_hidden_mse_is_the_formula_in_numpy(padded: bool):
    inside = a_mask() if padded else None
    student, teacher = (
        [random(ROWS, TOKENS, 4, seed=i) for i in (1, 2)],
        [random(ROWS, TOKENS, 6, seed=i) for i in (3, 4)],
    )
    projection = random(4, 6, seed=5)

    got = mse.hidden_mse(student, teacher, projection, inside=inside)

    for row in range(ROWS):
        size = int(a_mask()[row].sum()) if padded else TOKENS
        pairs = zip(student, teacher, strict=True)
        errors = [s[row, :size].numpy() @ projection.numpy() - t[row, :size].numpy() for s, t in pairs]
        assert got[row].item() == pytest.approx(np.mean(np.square(errors)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_value_relation_is_the_formula_in_numpy(padded: bool, heads: int):
    inside = a_mask() if padded else None
    student, teacher = random(ROWS, TOKENS, 8, seed=1), random(ROWS, TOKENS, 12, seed=2)

    got = relation.relation_loss(student, teacher, heads=heads, inside=inside)

    for row in range(ROWS):
        size = int(a_mask()[row].sum()) if padded else TOKENS
        costs = []
        for head in range(heads):
            p, q = (_relations(values[row, :size].numpy(), head, heads) for values in (teacher, student))
            costs.append(rel_entr(p, q).sum(-1))
        assert got[row].item() == pytest.approx(np.mean(costs))


def _relations(values: Any, head: int, heads: int) -> Any:
    width = values.shape[-1] // heads
    own = values[:, head * width : (head + 1) * width]
    return softmax(own @ own.T / math.sqrt(width), axis=-1)


def test_both_are_zero_for_a_student_that_equals_its_teacher():
    states = random(ROWS, TOKENS, 8)

    assert mse.hidden_mse([states], [states], torch.eye(8), inside=a_mask()).abs().max() == 0
    assert relation.relation_loss(states, states, heads=2, inside=a_mask()).abs().max() < 1e-12


def test_relations_do_not_see_a_rotation_of_the_values():
    """Only products of tokens count, which is why widths may differ."""
    student, teacher = random(ROWS, TOKENS, 4), random(ROWS, TOKENS, 4, seed=1)
    rotation, _ = torch.linalg.qr(random(4, 4, seed=2))

    turned = relation.relation_loss(student @ rotation, teacher, heads=1, inside=None)

    torch.testing.assert_close(turned, relation.relation_loss(student, teacher, heads=1, inside=None))


@pytest.mark.parametrize(
    "widths, most, want", [([384, 128], 12, 8), ([128, 50], 2, 2), ([768, 768], 12, 12), ([7, 5], 4, 1)]
)
def test_relation_heads_divide_all_widths(widths: list[int], most: int, want: int):
    assert relation.common_heads(widths, most=most) == want


@pytest.mark.parametrize("name", ["mse", "relation"])
def test_padding_changes_nothing_whatever_it_holds(name: str):
    student, teacher, inside = random(ROWS, TOKENS, 4), random(ROWS, TOKENS, 4, seed=1), a_mask()
    spoiled = student.masked_fill(~inside.unsqueeze(-1), torch.nan if name == "mse" else 1e6)

    found = [_loss(name, values, teacher, inside) for values in (student, spoiled)]

    torch.testing.assert_close(found[0], found[1])


def _loss(name: str, student: Any, teacher: Any, inside: Any) -> Any:
    if name == "mse":
        return mse.hidden_mse([student], [teacher], torch.eye(4, dtype=torch.float64), inside=inside)
    return relation.relation_loss(student, teacher, heads=2, inside=inside)


@pytest.mark.parametrize("name", ["mse", "relation"])
def test_the_gradient_is_the_slope_of_the_loss_and_the_teacher_gets_none(name: str):
    student, teacher = random(ROWS, TOKENS, 4).requires_grad_(), random(ROWS, TOKENS, 4, seed=1).requires_grad_()

    assert torch.autograd.gradcheck(lambda x: _loss(name, x, teacher.detach(), a_mask()), (student,))
    _loss(name, student, teacher, a_mask()).sum().backward()
    assert teacher.grad is None
    assert student.grad[~a_mask()].abs().max() == 0


def test_the_gradient_of_the_projection_is_the_slope_of_the_loss():
    projection = random(4, 6).requires_grad_()

    assert torch.autograd.gradcheck(
        lambda w: mse.hidden_mse([random(2, 3, 4, seed=1)], [random(2, 3, 6, seed=2)], w, inside=None), (projection,)
    )


@pytest.mark.parametrize("name", ["mse", "relation"])
def test_bfloat16_states_give_a_finite_loss_in_float32(name: str):
    student, teacher = ((1e3 * random(ROWS, TOKENS, 4, seed=i)).bfloat16() for i in (1, 2))

    if name == "mse":
        got = mse.hidden_mse([student], [teacher], torch.eye(4), inside=a_mask())
    else:
        got = relation.relation_loss(student, teacher, heads=2, inside=a_mask())

    assert got.dtype is torch.float32
    assert got.isfinite().all()


@pytest.mark.parametrize(
    "student, teacher, want",
    [(2, 6, [(1, 3), (2, 6)]), (4, 6, [(1, 2), (2, 3), (3, 5), (4, 6)]), (1, 6, [(1, 6)]), (3, 2, [(1, 1), (2, 1), (3, 2)])],
)  # fmt: skip
def test_layers_are_spread_evenly_and_the_last_learns_from_the_last(student: int, teacher: int, want: Any):
    assert mse.uniform_layers(student, teacher) == want


def test_a_new_projection_keeps_the_size_of_hidden_states_and_draws_from_its_own_seed():
    torch.manual_seed(7)
    before = torch.get_rng_state()

    projection = mse.new_projection(64, 128, seed=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.randn(1000, 64) @ projection).std().item() == pytest.approx(1, abs=0.1)
    assert not torch.equal(projection, mse.new_projection(64, 128, seed=2))
