"""How objectives are found, checked and combined; SoftTargets against its formula and its limits."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from distillchain_api import objectives as contract
from distillchain_trainer.errors import LabelMismatch
from later import Later

torch = Later("torch")
objectives = Later("distillchain_trainer.objectives")
names = Later("distillchain_trainer.objectives.names")
soft_targets = Later("distillchain_trainer.objectives.soft_targets")
objective = Later("distillchain_trainer.objectives.objective")

logits = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), min_size=1, max_size=5).map(
    lambda rows: torch.tensor(rows, dtype=torch.float32)
)
temperatures = st.floats(0.5, 20)


def test_a_value_worked_out_by_hand():
    # Teacher logits (ln 3, 0): p = (3/4, 1/4). Student logits (0, 0): q = (1/2, 1/2).
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287 = 0.130812 nats.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])

    assert soft_targets.soft_target_loss(student, teacher, temperature=1.0).mean().item() == pytest.approx(
        0.130812, abs=1e-6
    )


def test_temperature_two_by_hand():
    # Teacher logits (2 ln 3, 0) over T=2 are (ln 3, 0) again, and T^2 = 4 times 0.130812.
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])

    assert soft_targets.soft_target_loss(student, teacher, temperature=2.0).mean().item() == pytest.approx(
        4 * 0.130812, abs=4e-6
    )


@given(student=logits, teacher=logits, temperature=temperatures)
@settings(deadline=None)
def test_it_is_the_formula_of_the_paper(student: torch.Tensor, teacher: torch.Tensor, temperature: float):
    rows = min(len(student), len(teacher))
    student, teacher = student[:rows], teacher[:rows]
    p = softmax(teacher.double().numpy() / temperature, axis=-1)
    log_p = log_softmax(teacher.double().numpy() / temperature, axis=-1)
    log_q = log_softmax(student.double().numpy() / temperature, axis=-1)
    want = temperature**2 * np.mean(np.sum(p * (log_p - log_q), axis=-1))

    got = soft_targets.soft_target_loss(student, teacher, temperature=temperature).mean().item()

    assert got == pytest.approx(want, rel=1e-4, abs=1e-4 * temperature**2)


@given(student=logits, teacher=logits)
@settings(deadline=None)
def test_at_high_temperature_it_tends_to_half_the_mean_squared_distance(student: torch.Tensor, teacher: torch.Tensor):
    # Hinton et al., section 2.1: for T -> infinity, T^2 KL -> sum over classes (z - v)^2 / (2 C) of centred logits.
    rows = min(len(student), len(teacher))
    z, v = (x[:rows].double() - x[:rows].double().mean(-1, keepdim=True) for x in (student, teacher))
    want = ((z - v) ** 2).sum(-1) / (2 * 3)

    got = soft_targets.soft_target_loss(z, v, temperature=1e4)

    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


def test_the_gradient_flows_into_the_student_alone():
    student = torch.randn(4, 3, requires_grad=True)
    teacher = torch.randn(4, 3, requires_grad=True)

    soft_targets.soft_target_loss(student, teacher, temperature=2.0).mean().backward()

    assert teacher.grad is None
    p, q = (torch.softmax(x.detach() / 2.0, -1) for x in (teacher, student))
    torch.testing.assert_close(student.grad, 2.0 * (q - p) / 4)  # T^2 * (1/T) * (q - p), a mean over 4 rows


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_labels_and_teacher_are_weighed_by_alpha(alpha: float):
    label, teacher = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])

    got = objective.combined_loss(label if alpha < 1 else None, teacher if alpha > 0 else None, alpha=alpha)

    torch.testing.assert_close(got, (1 - alpha) * label + alpha * teacher)


def test_what_the_files_declare_is_in_the_contract_and_in_the_objectives():
    files = objectives.objective_files()

    assert sorted(files) == sorted(get_args(contract.Objective))
    for name, file in files.items():
        loaded = objectives.load_objective(name)
        assert loaded.uses_temperature == file.uses_temperature == (name not in contract.WITHOUT_TEMPERATURE)
        stated = {names.snake_case(key): item.default for key, item in file.parameters.items()}
        assert stated == contract.DEFAULTS.get(name, {})


def test_two_objectives_may_not_share_the_name_of_a_parameter(monkeypatch: pytest.MonkeyPatch):
    parameter = objectives.Parameter("a number", 0.5)
    files = {name: objectives.ObjectiveFile(name, name.lower(), parameters={"beta": parameter}) for name in ("A", "B")}
    monkeypatch.setattr("distillchain_trainer.objectives.names.objective_files", lambda: files)

    with pytest.raises(ValueError, match=r"^B and A both have a parameter beta; rename one$"):
        names.render()


def test_logits_of_another_number_of_classes_are_refused():
    with pytest.raises(LabelMismatch, match=r"^student logits are \(2, 3\), the teacher's \(2, 2\)$"):
        soft_targets.OBJECTIVE.losses(torch.zeros(2, 3), torch.zeros(2, 2), temperature=1.0, parameters={})
