"""A micro-batch that does not fit into memory is halved, and the result stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from distillchain_trainer.engine.device.modes import Mode
from distillchain_trainer.engine.training.saved_loop import SavedLoop
from distillchain_trainer.engine.training.selection import BestSoFar
from distillchain_trainer.errors import OutOfMemory
from trainer.loop_parts import CLASSES, random_rows, recipe, train, train_until_stopped

pytestmark = pytest.mark.models


class _Small(torch.nn.Module):
    """A device that holds `room` tokens, which this machine lacks; it learns one number, with dropout."""

    def __init__(self, room: int, *, dropout: float = 0.0, error: str = "") -> None:
        super().__init__()
        self.error = RuntimeError(error) if error else torch.OutOfMemoryError("CUDA out of memory")
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.dropout = torch.nn.Dropout(dropout)
        self.room = room

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        if input_ids.numel() > self.room:
            raise self.error
        sizes = self.dropout(attention_mask.float()).sum(-1, keepdim=True)
        return SimpleNamespace(logits=self.weight * sizes.expand(-1, CLASSES))


def _squares(answer: Any, compared: dict[str, Tensor]) -> Tensor:
    return ((answer.logits - compared["teacher"]) ** 2).sum(-1)


def test_a_micro_batch_that_does_not_fit_is_halved_and_the_result_stays(tmp_path: Path):
    """Batches differ in length, so it is often a later micro-batch of a step that does not fit."""
    rows = random_rows(45)
    large, small = _Small(room=10_000), _Small(room=30)

    train(large, rows, recipe(batch_size=16), tmp_path, losses=_squares)
    progress = train(small, rows, recipe(batch_size=16), tmp_path, losses=_squares, micro_batch_size=5)

    assert large.weight.item() == pytest.approx(small.weight.item(), abs=1e-6)
    assert large.weight.item() != 0
    assert progress.micro_batch_size < 5


@pytest.mark.parametrize(
    "error, is_halved",
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_memory_that_a_library_on_the_gpu_lacks_counts_too(tmp_path: Path, error: str, is_halved: bool):
    """It was a crash, and each retry the same one."""
    small = _Small(room=30, error=error)

    def run() -> int:
        return train(small, random_rows(45), recipe(batch_size=16), tmp_path, losses=_squares).micro_batch_size

    if is_halved:
        assert run() < 5
    else:
        with pytest.raises(RuntimeError, match=error):
            run()


def test_a_later_micro_batch_that_does_not_fit_leaves_no_gradient_and_no_random_number_behind(tmp_path: Path):
    """With dropout: the step that is made again draws the numbers of a run that was that small from the start."""
    rows, training = random_rows(30), recipe(batch_size=30, epochs=1)
    asked, short = _Small(room=10_000, dropout=0.5), _Small(room=10_000, dropout=0.5)
    calls = iter(range(1, 100))
    real = short.forward

    def fails_once(input_ids: Tensor, attention_mask: Tensor) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(input_ids, attention_mask)

    short.forward = fails_once  # type: ignore[method-assign]  # a device that is full once

    train(asked, rows, training, tmp_path, losses=_squares, micro_batch_size=5)
    train(short, rows, training, tmp_path, losses=_squares, micro_batch_size=10)

    assert asked.weight.item() == short.weight.item() != 0


def test_a_resumed_training_keeps_the_micro_batches_that_memory_allowed(tmp_path: Path):
    rows, training = random_rows(61), recipe(batch_size=16)
    whole, first = (_Small(room=40, dropout=0.5) for _ in range(2))
    second = _Small(room=1000, dropout=0.5)  # now there is memory, but other micro-batches would draw other masks
    train(whole, rows, training, tmp_path / "whole", losses=_squares)

    stopped = train_until_stopped(first, rows, training, tmp_path / "first", at_look=30, losses=_squares)
    train(second, rows, training, tmp_path / "second", losses=_squares, resume_from=stopped.state)

    assert 0 < stopped.step < 8
    assert whole.weight.item() == second.weight.item() != 0


@pytest.mark.parametrize("asked, want", [(8, 8), (None, 16), (2, 2), (1, 1)])
def test_a_resumed_training_makes_micro_batches_of_the_size_that_is_asked_for_now(
    tmp_path: Path, asked: int | None, want: int
):
    rows, training = random_rows(61), recipe(batch_size=16)
    stopped = train_until_stopped(
        _Small(room=1000), rows, training, tmp_path / "first", at_look=12, losses=_squares, micro_batch_size=2
    )

    progress = train(
        _Small(room=1000), rows, training, tmp_path, losses=_squares, micro_batch_size=asked, resume_from=stopped.state
    )

    assert progress.micro_batch_size == want


def test_what_memory_allowed_holds_for_the_size_that_was_asked_for(tmp_path: Path):
    rows, training = random_rows(61), recipe(batch_size=16)
    stopped = train_until_stopped(_Small(room=40), rows, training, tmp_path / "first", at_look=30, losses=_squares)

    sizes = [
        train(
            _Small(room=1000), rows, training, tmp_path, losses=_squares, micro_batch_size=asked,
            resume_from=stopped.state,
        ).micro_batch_size
        for asked in (None, 16, 12)
    ]  # fmt: skip

    assert sizes[0] == sizes[1] < 12
    assert sizes[2] == 12


SHORT = {"asked_rows": 16, "micro_rows": 4, "recomputes": True, "mode": Mode.EAGER}


@pytest.mark.parametrize(
    "saved, want",
    [
        pytest.param(SHORT, SHORT, id="the same size"),
        pytest.param(
            SHORT | {"asked_rows": 8},
            {"asked_rows": 8, "micro_rows": None, "recomputes": False, "mode": None},
            id="another size",
        ),
        pytest.param(SHORT | {"asked_rows": None}, SHORT | {"asked_rows": None}, id="of an earlier build"),
    ],
)
def test_what_was_found_with_another_size_is_left_out(tmp_path: Path, saved: dict[str, Any], want: dict[str, Any]):
    kept = SavedLoop(recent=[0.5], best=BestSoFar(measured=3), **saved)
    kept.write(tmp_path)

    assert SavedLoop.read(tmp_path, 16) == SavedLoop(recent=[0.5], best=BestSoFar(measured=3), **want)


def test_a_split_model_keeps_the_size_with_which_all_processes_started_again(tmp_path: Path):
    """The pod's next attempt asks for the larger size again, which has not fitted."""
    rows, training = random_rows(61), recipe(batch_size=16)
    stopped = train_until_stopped(
        _Small(room=1000), rows, training, tmp_path / "first", at_look=12, losses=_squares, micro_batch_size=8,
        fitting_rows=4,
    )  # fmt: skip

    sizes = [
        train(
            _Small(room=1000), rows, training, tmp_path, losses=_squares, micro_batch_size=asked,
            resume_from=stopped.state,
        ).micro_batch_size
        for asked in (8, 12, 2)
    ]  # fmt: skip

    assert sizes == [4, 12, 2]


def test_a_state_of_an_earlier_build_is_read(tmp_path: Path):
    """It has no size that was asked for, and always one that was used."""
    (tmp_path / "loop.json").write_text('{"recent":[0.5],"microRows":2,"recomputes":true,"mode":"captured"}')

    assert SavedLoop.read(tmp_path, 8) == SavedLoop(recent=[0.5], micro_rows=2, recomputes=True, mode=Mode.CAPTURED)


def test_a_gpu_too_small_for_one_row_is_reported(tmp_path: Path):
    with pytest.raises(OutOfMemory, match=r"too little memory to train on one row; lower spec\.task\.maxLength"):
        train(_Small(room=0), random_rows(45), recipe(), tmp_path, losses=_squares)
