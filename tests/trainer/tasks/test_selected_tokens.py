"""Log-probabilities of a few tokens out of a vocabulary: the formula, its gradient, and the teacher's k best tokens."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from distillchain_trainer.objectives import load_objective
from distillchain_trainer.tasks.causal_lm import selected
from distillchain_trainer.tasks.causal_lm.outputs import measured_outputs, split_teacher_outputs, teacher_outputs
from distillchain_trainer.tasks.causal_lm.selected import selected_log_probabilities, target_log_probabilities

pytestmark = pytest.mark.models

VOCABULARY = 11


def some_logits(seed: int, *, rows: int = 2, tokens: int = 3, vocabulary: int = VOCABULARY) -> torch.Tensor:
    torch.manual_seed(seed)
    return 2 * torch.randn(rows, tokens, vocabulary, dtype=torch.float64)


def some_ids(k: int) -> torch.Tensor:
    return torch.stack([torch.randperm(VOCABULARY)[:k] for _ in range(6)]).reshape(2, 3, k)


def positions(logits: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.shape[1]).expand(logits.shape[0], -1)


def test_a_value_computed_by_hand():
    # Odds 4 : 2 : 1 : 1 are probabilities 0.5, 0.25, 0.125 and 0.125.
    logits = torch.tensor([4.0, 2.0, 1.0, 1.0]).log()

    found = selected_log_probabilities(logits, torch.tensor([0, 2]))

    torch.testing.assert_close(found.exp(), torch.tensor([0.5, 0.125, 0.375]))


@pytest.mark.parametrize("k", [1, 5, VOCABULARY])
@pytest.mark.parametrize("block_rows", [1, 4, 100])
def test_value_and_gradient_do_not_depend_on_the_blocks(k: int, block_rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selected, "BLOCK_ELEMENTS", block_rows * VOCABULARY)
    logits, ids = some_logits(1).requires_grad_(), some_ids(k)

    found = selected_log_probabilities(logits, ids)

    wanted = logits.log_softmax(-1).gather(-1, ids)
    if k < VOCABULARY:
        wanted = torch.cat([wanted, torch.log1p(-wanted.exp().sum(-1, keepdim=True))], -1)
    torch.testing.assert_close(found, wanted)
    assert torch.autograd.gradcheck(lambda it: selected_log_probabilities(it, ids), (logits,))


def test_a_rest_below_the_precision_of_one_minus_the_others_keeps_its_digits():
    logits = torch.tensor([50.0, 0.0, 0.0, 0.0])

    rest = selected_log_probabilities(logits, torch.tensor([0]))[1]

    assert rest.item() == pytest.approx(-50 + torch.tensor(3.0).log().item(), abs=1e-4)


def test_logits_in_bfloat16_give_a_gradient_in_bfloat16():
    logits = some_logits(1).bfloat16().requires_grad_()

    target_log_probabilities(logits, some_ids(1)[..., 0]).sum().backward()

    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_with_k_of_the_whole_vocabulary_the_loss_is_that_of_all_logits():
    teacher, student = some_logits(1).float(), some_logits(2).float()
    objective = load_objective("SoftTargets").row_loss
    stored = teacher_outputs(teacher, positions(teacher), some_ids(1)[..., 0], k=VOCABULARY, tokens=VOCABULARY)
    ids, theirs = split_teacher_outputs(stored)

    ours = selected_log_probabilities(student, ids)

    for temperature in (0.5, 1.0, 4.0):
        whole = objective(student, teacher, temperature=temperature)
        torch.testing.assert_close(objective(ours, theirs[..., :VOCABULARY], temperature=temperature), whole)


def test_a_student_with_padded_embeddings_counts_them_as_the_rest():
    teacher, student = some_logits(1).float(), some_logits(2, vocabulary=VOCABULARY + 3).float()
    stored = teacher_outputs(teacher, positions(teacher), some_ids(1)[..., 0], k=VOCABULARY, tokens=VOCABULARY)
    ids, theirs = split_teacher_outputs(stored)

    found = load_objective("SoftTargets").row_loss(selected_log_probabilities(student, ids), theirs, temperature=1.0)

    log_q = student.log_softmax(-1)[..., :VOCABULARY]
    log_p = teacher.log_softmax(-1)
    torch.testing.assert_close(found, (log_p.exp() * (log_p - log_q)).sum(-1))


def test_a_teacher_with_padded_embeddings_stores_no_token_that_the_tokenizer_does_not_know():
    teacher = some_logits(1).float()
    teacher[..., -1] = 20.0  # the padding row is the most probable

    ids, theirs = split_teacher_outputs(
        teacher_outputs(teacher, positions(teacher), some_ids(1)[..., 0], k=4, tokens=VOCABULARY - 1)
    )

    assert ids.max() < VOCABULARY - 1
    torch.testing.assert_close(theirs.exp().sum(-1), torch.ones(2, 3))
    assert theirs[..., -1].exp().min() > 0.99


def test_logits_in_bfloat16_are_stored_and_measured_as_in_float32():
    logits, targets = some_logits(1).bfloat16(), some_ids(1)[..., 0]
    assert len(logits[0, 0].unique()) == VOCABULARY, "of equal ones any may be stored"

    for outputs in (measured_outputs, partial(teacher_outputs, k=4, tokens=VOCABULARY - 1)):
        found, want = (outputs(own, positions(logits), targets) for own in (logits, logits.float()))
        assert found.dtype is torch.float32
        assert torch.equal(found, want)


def test_what_is_measured_is_the_target_s_log_probability_and_the_most_probable_token():
    logits, targets = some_logits(1).float(), some_ids(1)[..., 0]

    found = measured_outputs(logits, positions(logits), targets)

    torch.testing.assert_close(found[..., 0], logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1))[..., 0])
    assert torch.equal(found[..., 1].long(), logits.argmax(-1))


def test_items_are_read_at_their_positions():
    logits, targets = some_logits(1).float(), torch.tensor([[3], [4]])

    found = measured_outputs(logits, torch.tensor([[2], [1]]), targets)

    wanted = [logits[0, 2].log_softmax(-1)[3], logits[1, 1].log_softmax(-1)[4]]
    torch.testing.assert_close(found[:, 0, 0], torch.stack(wanted))
