"""Forward passes: every row once, in batches bounded by tokens, as large as there is room for."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes import forward as engine_forward
from distillchain_trainer.engine.passes.forward import CPU_ROWS, CPU_TOKENS, forward, latency_ms
from distillchain_trainer.engine.passes.shared_forward import all_outputs
from distillchain_trainer.errors import OutOfMemory

pytestmark = pytest.mark.models


class Model(torch.nn.Module):
    """Answers the number of tokens; stands in for a GPU that holds `room` tokens, which this machine lacks."""

    def __init__(self, room: int = 10**9) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.room = room
        self.batches: list[int] = []

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        if input_ids.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(input_ids))
        return SimpleNamespace(logits=attention_mask.sum(-1, keepdim=True).float())


def encoded(lengths: list[int]) -> Encoded:
    return Encoded.of([np.ones(size, dtype=np.int32) for size in lengths], pad_id=0)


def logits_of(answer: Any, _: dict[str, torch.Tensor]) -> torch.Tensor:
    logits: torch.Tensor = answer.logits
    return logits


def lengths(rows: int) -> list[int]:
    dice = random.Random(3)
    return [dice.randint(3, 60) for _ in range(rows)]


@pytest.mark.parametrize("room", [10**6, 1000, 60])
@pytest.mark.parametrize("ahead", [0, 1])
def test_every_row_is_answered_once_the_longest_first_in_batches_that_fit(
    room: int, ahead: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_forward, "launched_ahead", lambda _: ahead)
    sizes, model = lengths(1000), Model(room)

    answers = list(forward(model, encoded(sizes), logits_of, precision="float32"))

    rows = [row for answer in answers for row in answer.rows]
    assert sorted(rows) == list(range(1000))
    assert [sizes[row] for row in rows] == sorted(sizes, reverse=True)
    assert [size for answer in answers for (size,) in answer.outputs] == [sizes[row] for row in rows]


def test_batches_are_bounded_by_tokens_and_by_rows():
    sizes, model = [8000, 2000, 2000, 2000, 2000, *[10] * 200], Model()

    list(forward(model, encoded(sizes), logits_of, precision="float32"))

    assert model.batches[:3] == [1, CPU_TOKENS // 2000, 64]
    assert max(model.batches) == CPU_ROWS


def test_after_a_long_text_that_did_not_fit_the_batches_grow_again():
    """One long text halved the batches of 5,000 short rows to two for the rest of the pass."""
    model = Model(room=600)

    list(forward(model, encoded([600, 500, 500, *[10] * 5000]), logits_of, precision="float32"))

    assert model.batches[:3] == [1, 1, 1]
    assert max(model.batches) > 20
    assert len(model.batches) < 250


def test_a_gpu_too_small_for_one_text_is_reported():
    with pytest.raises(OutOfMemory, match=r"too little memory for one text of 60 tokens; lower spec\.task\.maxLength"):
        list(forward(Model(59), encoded([5, 60]), logits_of, precision="float32"))


def test_all_outputs_are_in_the_order_of_the_rows():
    sizes = lengths(100)
    done: list[tuple[int, int]] = []

    outputs, elapsed_s = all_outputs(
        Model(), encoded(sizes), logits_of, precision="float32", on_batch=lambda *step: done.append(step)
    )

    assert outputs[:, 0].tolist() == sizes
    assert done[-1] == (100, 100)
    assert elapsed_s > 0


class Slow(Model):
    """Each pass takes a hundredth of a second."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        time.sleep(0.01)
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("rows", [1, CPU_ROWS, 3 * CPU_ROWS + 1])
@pytest.mark.parametrize("ahead", [0, 1])
def test_the_times_of_all_batches_add_up_to_the_time_of_the_pass(
    rows: int, ahead: int, monkeypatch: pytest.MonkeyPatch
):
    """The time of batches launched ahead was lost: a GPU seemed to answer 18.9 million rows a second."""
    monkeypatch.setattr(engine_forward, "launched_ahead", lambda _: ahead)
    model = Slow()

    answers = list(forward(model, encoded([5] * rows), logits_of, precision="float32"))

    assert sum(answer.elapsed_s for answer in answers) >= 0.01 * len(model.batches)


class Linear(torch.nn.Module):
    """A weight that autocast converts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        del attention_mask
        return SimpleNamespace(logits=self.layer(torch.ones(len(input_ids), 8)))


def test_weights_are_converted_once_for_all_batches():
    """Within inference_mode, autocast converted the weights for each batch again."""
    with torch.profiler.profile(record_shapes=True) as profile:
        all_outputs(Linear(), encoded([5] * 300), logits_of, precision="bfloat16", on_batch=lambda *_: None)

    weight = [event for event in profile.events() if event.name == "aten::_to_copy" and event.input_shapes[0] == [2, 8]]
    assert len(weight) == 1


def test_latency_is_measured_on_single_rows():
    model = Model()

    p50, p95 = latency_ms(model, encoded(lengths(500)), logits_of, precision="float32")

    assert set(model.batches) == {1}
    assert 0 < p50 <= p95
