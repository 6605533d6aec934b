"""A training that stops gives the same bytes when it is resumed, and says which step is saved."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from distillchain_trainer.engine.training.history import History
from distillchain_trainer.errors import StopRequested
from trainer.loop_parts import a_student, distance, forget, random_rows, recipe, train, train_until_stopped

pytestmark = pytest.mark.models


@pytest.mark.parametrize("stop_at", [1, 7, 8, 9, 15])
def test_a_resumed_training_gives_the_same_bytes(tmp_path: Path, stop_at: int):
    """With dropout, so that the random numbers count; 61 rows are 8 steps an epoch."""
    rows, training, start = random_rows(61), recipe(warmup_ratio=0.1, weight_decay=0.01), a_student(dropout=0.2)
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    train(whole, rows, training, tmp_path / "whole")

    stopped = train_until_stopped(first, rows, training, tmp_path / "first", at_look=stop_at)
    forget(second)
    progress = train(second, rows, training, tmp_path / "second", resume_from=stopped.state)

    assert stopped.step == stop_at
    assert progress.step == 16
    assert distance(whole, second) == 0.0


def test_an_epoch_that_ends_is_measured_once_also_when_training_stopped_there(tmp_path: Path):
    rows, training = random_rows(61), recipe(epochs=3)
    history, again = History([]), History([])
    train(a_student(), rows, training, tmp_path / "whole", history=history)

    stopped = train_until_stopped(a_student(), rows, training, tmp_path / "first", at_look=8, history=again)
    train(a_student(), rows, training, tmp_path / "second", resume_from=stopped.state, history=again)

    measured = [[point.step for point in each.points if point.validation] for each in (history, again)]
    assert measured == [[8, 16], [8, 16]], "the last epoch is measured with the finished student"


def test_a_stop_within_a_long_step_saves_the_step_before_and_the_result_stays(tmp_path: Path):
    """One step of many micro-batches may take longer than a pod has to stop."""
    rows, training, start = random_rows(40), recipe(batch_size=40, epochs=3), a_student(dropout=0.2)
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    train(whole, rows, training, tmp_path / "whole", micro_batch_size=4)

    stopped = train_until_stopped(first, rows, training, tmp_path / "first", at_look=15, micro_batch_size=4)
    forget(second)
    train(second, rows, training, tmp_path / "second", micro_batch_size=4, resume_from=stopped.state)

    assert stopped.step == 1, "ten looks are the first step's, the fifteenth is within the second"
    assert distance(whole, second) == 0.0


def test_a_stop_names_no_step_that_is_not_saved(tmp_path: Path):
    with pytest.raises(StopRequested) as stop:
        train(a_student(), random_rows(16), recipe(), tmp_path, stop=lambda: True, saves=False)

    assert stop.value.step == 0


def test_a_saved_state_holds_no_pickle(tmp_path: Path):
    folder, _ = train_until_stopped(a_student(), random_rows(61), recipe(), tmp_path, at_look=3).state

    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
