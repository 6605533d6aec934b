"""Forward passes: every row once, in batches for which there is room."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_trainer.engine.encode import Encoded, forward
from distillchain_trainer.errors import OutOfMemory

pytestmark = pytest.mark.models


class Model(torch.nn.Module):
    """Answers as many tokens as it was given; stands in for a GPU that holds `room` tokens, which this machine lacks."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.room = room
        self.batches: list[int] = []

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        if input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(input_ids))
        return SimpleNamespace(logits=attention_mask.sum(-1, keepdim=True).float())


def encoded(given: list[int]) -> Encoded:
    return Encoded([np.ones(size, dtype=np.int32) for size in given], None, pad_id=0, pad_left=False)


def lengths(rows: int) -> list[int]:
    dice = random.Random(3)
    return [dice.randint(3, 60) for _ in range(rows)]


@pytest.mark.parametrize("room", [10**6, 1000, 60])
def test_every_row_is_answered_once_the_longest_first_in_batches_that_fit(room: int):
    given, model = lengths(1000), Model(room)

    answers = list(forward(model, encoded(given), precision="float32"))

    rows = [row for answer in answers for row in answer.rows]
    assert sorted(rows) == list(range(1000))
    assert [given[row] for row in rows] == sorted(given, reverse=True)
    assert [size for answer in answers for (size,) in answer.logits] == [given[row] for row in rows]
    assert max(model.batches) <= min(64, room // min(given))


def test_a_gpu_too_small_for_one_text_is_told_so():
    with pytest.raises(OutOfMemory, match=r"too little memory for one text of 60 tokens; lower spec\.task\.maxLength"):
        list(forward(Model(59), encoded([5, 60]), precision="float32"))
