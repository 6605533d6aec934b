"""The predictions of several language models as those of one: values by hand, and exact where nothing is estimated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distillchain_trainer.tasks.causal_lm import mean_of_teachers as module
from distillchain_trainer.tasks.causal_lm.mean_of_teachers import mean_of_teachers
from distillchain_trainer.tasks.causal_lm.outputs import split_teacher_outputs, teacher_outputs


def stored(logits: Tensor, *, k: int) -> Tensor:
    """What a teacher with these logits [items, vocabulary] leaves in the store, [items, 2 * k + 2]."""
    items, vocabulary = logits.shape
    places, targets = torch.arange(items).unsqueeze(0), torch.zeros((1, items), dtype=torch.int64)
    return teacher_outputs(logits.unsqueeze(0), places, targets, k=k, tokens=vocabulary)[0].double()


def probabilities(outputs: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Ids of the k tokens, and the softened probabilities of these and of all others."""
    ids, logs = split_teacher_outputs(outputs)
    return ids, (logs / temperature).softmax(-1)


def random_logits(teachers: int, vocabulary: int, *, items: int = 50) -> Tensor:
    return 3 * torch.randn(teachers, items, vocabulary, generator=torch.Generator().manual_seed(5))


def test_a_token_that_one_teacher_has_not_stored_gets_its_share_of_the_rest():
    """Of four tokens, two are stored. The rest of each teacher is 0.2, so 0.1 for each of its two other tokens:
    (0.6, 0.2, 0.1, 0.1) and (0.3, 0.1, 0.5, 0.1) have the mean (0.45, 0.15, 0.3, 0.1)."""
    first, second = torch.tensor([0.6, 0.2, 0.15, 0.05]).log(), torch.tensor([0.3, 0.02, 0.5, 0.18]).log()
    outputs = torch.stack([stored(logits.unsqueeze(0), k=2) for logits in (first, second)])

    found = mean_of_teachers(outputs, torch.tensor([0.5, 0.5]).double(), temperature=1.0, vocabulary=4)

    ids, shares = probabilities(found)
    assert ids.tolist() == [[0, 2]]
    assert shares[0].tolist() == pytest.approx([0.45, 0.3, 0.25])
    assert found[0, -1].exp().item() == pytest.approx(0.45), "the token that is to be predicted"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_nothing_is_estimated_where_all_tokens_are_stored(temperature: float):
    logits, weights = random_logits(3, 20), torch.tensor([0.2, 0.3, 0.5]).double()
    outputs = torch.stack([stored(one, k=20) for one in logits])

    found = mean_of_teachers(outputs, weights, temperature=temperature, vocabulary=20)

    ids, shares = probabilities(found, temperature)
    want = (weights.reshape(-1, 1, 1) * (logits.double() / temperature).softmax(-1)).sum(0)
    torch.testing.assert_close(shares[:, :20], want.gather(-1, ids), rtol=1e-5, atol=1e-7)
    assert shares[:, 20].max() == 0, "no other tokens"


def test_no_estimate_is_further_off_than_the_smallest_stored_probability():
    logits, weights = random_logits(2, 30), torch.tensor([0.4, 0.6]).double()
    outputs = torch.stack([stored(one, k=6) for one in logits])

    ids, shares = probabilities(mean_of_teachers(outputs, weights, temperature=1.0, vocabulary=30))

    assert all(len(set(row)) == 6 for row in ids.tolist())
    torch.testing.assert_close(shares.sum(-1), torch.ones(len(shares)).double())
    want = (weights.reshape(-1, 1, 1) * logits.double().softmax(-1)).sum(0).gather(-1, ids)
    smallest = (weights.reshape(-1, 1) * outputs[..., 5].exp()).sum(0, keepdim=True).T
    assert ((shares[:, :6] - want).abs() <= smallest + 1e-6).all()
    assert (shares[:, :6] - want).abs().max() > 1e-4, "something is estimated"


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_teachers_that_agree_are_one_teacher(temperature: float):
    outputs = stored(random_logits(1, 30)[0], k=6)

    found = mean_of_teachers(
        outputs.expand(3, *outputs.shape),
        torch.tensor([0.5, 0.3, 0.2]).double(),
        temperature=temperature,
        vocabulary=30,
    )

    (ids, shares), (want_ids, want) = probabilities(found, temperature), probabilities(outputs, temperature)
    assert ids.tolist() == want_ids.tolist()
    torch.testing.assert_close(shares, want)


def test_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch):
    outputs = torch.stack([stored(one, k=6) for one in random_logits(2, 30)])
    weights = torch.tensor([0.5, 0.5]).double()
    whole = mean_of_teachers(outputs, weights, temperature=1.0, vocabulary=30)
    monkeypatch.setattr(module, "BLOCK_ITEMS", 7)

    torch.testing.assert_close(mean_of_teachers(outputs, weights, temperature=1.0, vocabulary=30), whole)
