"""The order of rows, and what the Trainer is told: what decides the student, and nothing of the machine."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from distillchain_api.resource.spec import Training
from later import Later

pytestmark = pytest.mark.slow  # imports transformers' Trainer

transformers = Later("transformers")


def lengths(rows: int) -> list[int]:
    dice = random.Random(3)
    return [dice.randint(3, 60) for _ in range(rows)]


def test_training_batches_are_of_about_equal_length_and_another_order_each_epoch():
    from distillchain_trainer.engine.loop import _LengthGroups

    given = lengths(3200)
    sampler = _LengthGroups(given, group=32, seed=5)

    first = list(sampler)
    sampler.epoch = 1
    second = list(sampler)

    assert sorted(first) == sorted(second) == list(range(3200))
    assert first != second
    batches = [[given[row] for row in first[start : start + 32]] for start in range(0, 3200, 32)]
    spread = sorted(max(batch) - min(batch) for batch in batches)
    assert spread[len(spread) // 2] <= 3, "rows at random spread over more than 50"


def test_the_batch_is_the_recipes_also_where_several_gpus_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two GPUs, which this machine lacks: the Trainer would take a batch of twice the size over both."""
    from distillchain_trainer.engine.loop import _arguments

    made = transformers.TrainingArguments.__post_init__

    def with_two_gpus(self: object) -> None:
        made(self)
        self._n_gpu = 2  # type: ignore[attr-defined]

    monkeypatch.setattr(transformers.TrainingArguments, "__post_init__", with_two_gpus)

    arguments = _arguments(Training(batch_size=32, learning_rate=1e-4, epochs=1), tmp_path)

    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 32)
