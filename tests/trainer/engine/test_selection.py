"""The best epoch on validation: which one it is, that its weights are kept, and when the training ends."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from distillchain_api.metrics import ACCURACY, MSE, Metric
from distillchain_api.wire.manifest import SelectedEpoch
from distillchain_trainer.engine.ranks.peers import Peers
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.engine.training import history, loop, selection
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.loop import Hooks
from distillchain_trainer.engine.training.progress import TrainingProgress
from distillchain_trainer.engine.training.selection import BestSoFar, EpochSelection
from distillchain_trainer.errors import StopRequested
from trainer.loop_parts import a_student, distance, forget, random_rows, recipe, row_losses
from trainer.loop_parts import train as train_to_the_last_epoch

pytestmark = pytest.mark.models

NAN = math.nan
ROWS = 20  # three steps an epoch
EPOCH_STEPS = 3

Look = Callable[[], bool]


class Course:
    """A training whose epochs have these values on validation."""

    def __init__(self, values: list[float], folder: Path, *, metric: Metric = ACCURACY, **training: Any) -> None:
        self.values, self.folder, self.metric = values, folder, metric
        self.training = recipe(epochs=len(values), selection="Best", **{"scheduler": "constant", **training})
        self.history = History([])
        self.reported: list[TrainingProgress] = []
        self.kept: list[tuple[Path, int]] = []
        self.measurements = 0
        self.stops_in = 0  # the measurement that a stop ends once, counted from 1

    def run(self, model: Any, *, stop: Look = lambda: False) -> TrainingProgress:
        """One attempt, which continues from the newest state."""
        attempt = self.folder / f"attempt-{len(list(self.folder.glob('attempt-*')))}"
        attempt.mkdir(parents=True)

        def validate() -> dict[str, float]:
            self.measurements += 1
            if self.stops_in == self.measurements:
                self.measurements, self.stops_in = self.measurements - 1, 0
                raise StopRequested
            return {self.metric.name: self.values[self.measurements - 1]}

        def save(state: Path, progress: TrainingProgress, stops: bool) -> bool:
            kept = self.folder / f"kept-{len(self.kept)}"
            kept.mkdir()
            for file in state.iterdir():
                (kept / file.name).write_bytes(file.read_bytes())
            self.kept.append((kept, progress.step))
            return True

        return loop.train(
            model,
            random_rows(ROWS),
            row_losses,
            loop.Settings(
                self.training, micro_batch_size=None, folder=attempt, save_interval_s=3600.0, best_by=self.metric
            ),
            resume_from=self.kept[-1] if self.kept else None,
            train_s_before=0.0,
            history=self.history,
            hooks=Hooks(stop=stop, on_step=self.reported.append, save=save, validate=lambda _: validate()),
        )


def at_look(number: int) -> Look:
    looks: Iterator[int] = iter(range(1, 10_000))
    return lambda: next(looks) >= number


@pytest.mark.parametrize(
    "values, metric, patience, best, trained",
    [
        pytest.param([0.5, 0.7, 0.6], ACCURACY, 0, 2, 3, id="the largest"),
        pytest.param([0.5, 0.7, 0.6], MSE, 0, 1, 3, id="the smallest of an error"),
        pytest.param([0.5, 0.6, 0.7], ACCURACY, 1, 3, 3, id="the last"),
        pytest.param([0.6, 0.7, 0.7], ACCURACY, 0, 2, 3, id="of equal ones the earlier"),
        pytest.param([0.7, 0.6, 0.7, 0.9], ACCURACY, 2, 1, 3, id="an equal one is no improvement"),
        pytest.param([0.7, 0.6, 0.8, 0.5, 0.4, 0.9], ACCURACY, 2, 3, 5, id="epochs in a row"),
        pytest.param([0.7, 0.6, 0.9], ACCURACY, 1, 1, 2, id="a patience of one epoch"),
        pytest.param([NAN, 0.2, NAN], ACCURACY, 0, 2, 3, id="not a number is never the best"),
        pytest.param([NAN, NAN, 0.9], ACCURACY, 2, 2, 2, id="not a number is no improvement"),
        pytest.param([NAN, NAN], MSE, 0, 2, 2, id="no number at all keeps the last"),
    ],
)
def test_the_weights_are_those_of_a_training_of_as_many_epochs(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    values: list[float],
    metric: Metric,
    patience: int,
    best: int,
    trained: int,
):
    """With a constant learning rate, because the others fall over all epochs. With dropout."""
    caplog.set_level(logging.INFO, "distillchain_trainer")
    chosen, shorter = a_student(dropout=0.2), a_student(dropout=0.2)
    course = Course(values, tmp_path, metric=metric, patience=patience)

    progress = course.run(chosen)
    train_to_the_last_epoch(shorter, random_rows(ROWS), recipe(epochs=best, scheduler="constant"), tmp_path)

    assert progress.selected == SelectedEpoch(epoch=best, step=best * EPOCH_STEPS, trained_epochs=trained)
    assert distance(chosen, shorter) == 0.0
    assert [point.epoch for point in course.history.points if point.validation] == [
        epoch for epoch, value in enumerate(values[:trained], start=1) if math.isfinite(value)
    ], "the last epoch too"
    assert (progress.step, progress.of) == (trained * EPOCH_STEPS, trained * EPOCH_STEPS)
    assert (course.reported[-1].step, course.reported[-1].of) == (progress.step, progress.of), "all of it is done"
    (logged,) = (record for record in caplog.records if hasattr(record, "kept_epoch"))
    ended = "all epochs trained" if trained == len(values) else "patience ended the training"
    assert vars(logged).items() >= {
        "message": ended, "after_epoch": trained, "of": len(values), "kept_epoch": best
    }.items()  # fmt: skip


@pytest.mark.parametrize("patience, step", [(0, 2), (0, 3), (0, 4), (0, 12), (0, 13), (0, 15), (2, 5), (2, 9)])
def test_a_training_that_is_stopped_anywhere_keeps_the_best_epoch(tmp_path: Path, patience: int, step: int):
    """Also after the last step of all, and after the last one that patience leaves."""
    values = [0.7, 0.6, 0.5, 0.9, 0.8]
    whole, resumed = a_student(dropout=0.2), a_student(dropout=0.2)
    want = Course(values, tmp_path / "whole", patience=patience).run(whole)
    course = Course(values, tmp_path / "resumed", patience=patience)

    with pytest.raises(StopRequested) as stop:
        course.run(a_student(dropout=0.2), stop=at_look(step))
    forget(resumed)
    progress = course.run(resumed)

    assert stop.value.step == step
    assert (progress.step, progress.selected) == (want.step, want.selected)
    assert distance(whole, resumed) == 0.0


@pytest.mark.parametrize("measurement", [1, 3, 5])
def test_an_epoch_whose_measurement_was_stopped_is_measured_again(tmp_path: Path, measurement: int):
    values = [0.5, 0.7, 0.6, 0.9, 0.8]
    whole, resumed = a_student(dropout=0.2), a_student(dropout=0.2)
    Course(values, tmp_path / "whole").run(whole)
    course = Course(values, tmp_path / "resumed")

    course.stops_in = measurement
    with pytest.raises(StopRequested) as stop:
        course.run(a_student(dropout=0.2))
    forget(resumed)
    progress = course.run(resumed)

    assert stop.value.step == measurement * EPOCH_STEPS
    assert progress.selected == SelectedEpoch(epoch=4, step=12, trained_epochs=5)
    assert distance(whole, resumed) == 0.0
    assert course.measurements == 5


def test_the_learning_rate_falls_over_all_epochs_also_when_patience_ends_them(tmp_path: Path):
    course, student = Course([0.5, 0.4, 0.3, 0.2], tmp_path, scheduler="linear", patience=2), a_student()
    history, other = History([]), copy.deepcopy(student)

    course.run(student)
    train_to_the_last_epoch(other, random_rows(ROWS), recipe(epochs=4, scheduler="linear"), tmp_path, history=history)

    rates = [point.learning_rate for point in course.history.points if point.loss is not None]
    assert rates == [point.learning_rate for point in history.points if point.loss is not None][: 3 * EPOCH_STEPS]


def test_without_a_best_epoch_no_state_has_its_weights(tmp_path: Path):
    course = Course([NAN, NAN], tmp_path)

    with pytest.raises(StopRequested):
        course.run(a_student(), stop=at_look(5))

    assert not list(course.kept[-1][0].glob("best*"))
    assert course.run(a_student()).selected == SelectedEpoch(epoch=2, step=6, trained_epochs=2)


def test_an_infinite_value_is_not_the_best():
    best = BestSoFar().after(1, 3, math.inf, ACCURACY).after(2, 6, 0.1, ACCURACY)

    assert (best.epoch, best.value) == (2, 0.1)


def test_buffers_are_kept_with_the_weights(tmp_path: Path):
    """A model may learn them outside of the gradient, as batch normalisation does."""
    student = a_student()
    student.register_buffer("seen", torch.zeros(()))
    real = student.forward

    def counting(*args: Any, **more: Any) -> Any:
        student.seen += 1
        return real(*args, **more)

    student.forward = counting

    Course([0.9, 0.5], tmp_path).run(student)

    assert student.seen == EPOCH_STEPS


def test_the_curve_reaches_the_last_step_when_patience_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(history, "HISTORY_POINTS", 2)  # every fifth of nine steps, and the training ends at the sixth
    course = Course([0.7, 0.6, 0.9], tmp_path, patience=1)

    course.run(a_student())

    assert [point.step for point in course.history.points if point.loss is not None] == [5, 6]


@pytest.mark.parametrize("call", ["measured", "restore"])
def test_no_rank_goes_on_before_rank_0_has_stored_or_loaded_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
):
    """A large student takes longer than a collective may: the other ranks gave rank 0 up."""
    store, may_end, ends = dist.HashStore(), threading.Event(), []
    monkeypatch.setattr(selection, "save_weights", lambda *_, **__: may_end.wait(30))
    monkeypatch.setattr(selection, "load_weights", lambda *_, **__: may_end.wait(30))
    (tmp_path / selection.WEIGHTS_FILE).touch()

    def run(rank: int) -> None:
        world = World(rank, 2, rank, Peers(store, rank, 2))
        best = BestSoFar() if call == "measured" else BestSoFar(measured=1, epoch=1, step=3, value=0.5)
        kept = EpochSelection(ACCURACY, 0, folder=tmp_path, world=world, sharded=True, best=best, state=None)
        if call == "measured":
            kept.measured(1, 3, {"accuracy": 0.5}, None)
        else:
            kept.restore(None)
        ends.append(rank)

    ranks = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in ranks:
        thread.start()
    ranks[1].join(0.5)

    assert ends == []
    may_end.set()
    for thread in ranks:
        thread.join(30)
    assert sorted(ends) == [0, 1]
