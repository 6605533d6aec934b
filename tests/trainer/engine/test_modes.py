"""How steps are executed: which mode is chosen, and that every mode gives the weights of the eager one.

A CPU has no CUDA graphs. Here a recording is replaced by the step itself, run again with what its input tensors hold:
everything but the capture is real. bench/gpu.py compares the modes on a GPU.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distillchain_trainer.engine.device.compiled import compile_layers, repeated_layers, uncompile_layers
from distillchain_trainer.engine.device.modes import CAPTURE_PAYS_S, COMPILE_PAYS_S, TIMED_STEPS, Mode, ModeTrial
from distillchain_trainer.engine.ranks.world import World
from distillchain_trainer.engine.training import stepper
from distillchain_trainer.engine.training.captured import CapturedStep, Shape
from distillchain_trainer.engine.training.data_order import epoch_batches
from distillchain_trainer.engine.training.optimizer import build_optimizer
from distillchain_trainer.engine.training.step import EagerStep, Work
from distillchain_trainer.engine.training.stepper import Stepper
from distillchain_trainer.engine.training.widths import width_for, widths_up_to
from trainer.loop_parts import a_student, distance, forget, random_rows, recipe, row_losses, train, train_until_stopped

pytestmark = pytest.mark.models

ALL = (Mode.EAGER, Mode.CAPTURED, Mode.COMPILED_CAPTURED, Mode.COMPILED)
MANY = 1_000_000


def tried(trial: ModeTrial, seconds: dict[Mode, float], *, steps_left: int = MANY) -> list[Mode]:
    """The modes of a whole trial in which a step takes so many seconds; a mode without seconds fails."""
    seen = []
    while not trial.is_decided:
        mode = trial.mode
        if not seen or seen[-1] != mode:
            seen.append(mode)
        if mode in seconds:
            trial.step_done(seconds[mode], steps_left=steps_left)
        else:
            trial.failed(steps_left=steps_left)
    return seen


@pytest.mark.parametrize("fastest", [Mode.EAGER, Mode.CAPTURED, Mode.COMPILED_CAPTURED])
def test_the_fastest_mode_is_kept(fastest: Mode):
    trial = ModeTrial(ALL)

    seen = tried(trial, {mode: 0.5 if mode is fastest else 1.0 for mode in ALL})

    assert trial.mode is fastest
    assert seen == list(ALL[:3]), "compiled alone is not tried where it can be captured"


def test_compiled_alone_is_tried_where_nothing_can_be_captured():
    trial = ModeTrial(ALL)

    seen = tried(trial, {Mode.EAGER: 1.0, Mode.COMPILED: 0.5})

    assert seen == [Mode.EAGER, Mode.CAPTURED, Mode.COMPILED]
    assert trial.mode is Mode.COMPILED


def test_where_both_together_fail_compiled_alone_is_tried():
    """Seen on an H200 with torch 2.11: compiled layers cannot be recorded in bfloat16, and each alone works."""
    trial = ModeTrial(ALL)

    seen = tried(trial, {Mode.EAGER: 1.0, Mode.CAPTURED: 0.9, Mode.COMPILED: 0.8})

    assert seen == list(ALL)
    assert trial.mode is Mode.COMPILED


@pytest.mark.parametrize(
    "left_s, want",
    [
        (0.5 * CAPTURE_PAYS_S, [Mode.EAGER]),
        (0.5 * COMPILE_PAYS_S, [Mode.EAGER, Mode.CAPTURED]),
        (2.0 * COMPILE_PAYS_S, [Mode.EAGER, Mode.CAPTURED, Mode.COMPILED_CAPTURED]),
    ],
)
def test_a_mode_is_tried_only_if_enough_training_is_left(left_s: float, want: list[Mode]):
    seconds = dict.fromkeys(ALL, 0.25)

    assert tried(ModeTrial(ALL), seconds, steps_left=int(left_s / 0.25)) == want


def test_if_every_mode_fails_steps_are_eager():
    trial = ModeTrial(ALL)

    tried(trial, {Mode.EAGER: 1.0})

    assert trial.mode is Mode.EAGER


def test_a_decided_mode_is_not_tried_again_unless_this_device_lacks_it():
    assert ModeTrial(ALL, decided=Mode.COMPILED).is_decided
    assert ModeTrial(ALL, decided=Mode.COMPILED).mode is Mode.COMPILED
    assert ModeTrial((Mode.EAGER,), decided=Mode.COMPILED).mode is Mode.EAGER


def test_steps_that_are_not_typical_are_not_timed():
    trial = ModeTrial(ALL[:2])
    for _ in range(TIMED_STEPS):
        trial.step_done(1.0, steps_left=MANY)
    for _ in range(TIMED_STEPS):
        trial.step_done(None, steps_left=MANY)
        trial.step_done(0.1, steps_left=MANY)

    assert trial.mode is Mode.CAPTURED
    assert trial.seconds[Mode.CAPTURED] == 0.1


@pytest.mark.parametrize("longest", [1, 7, 8, 9, 66, 128, 512, 8192])
def test_widths_hold_every_row_are_few_and_pad_little(longest: int):
    widths = widths_up_to(longest)

    assert widths[-1] == longest, "no wider than the longest row: a model may have no more positions"
    assert widths == sorted(set(widths))
    assert len(widths) <= 32
    for size in range(1, longest + 1):
        width = width_for(size, widths)
        assert size <= width <= max(8, 1.25 * size + 8)


class _Again:
    """In place of a CUDA graph: makes the step again, from the same tensors."""

    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step
        self.count = 0

    def replay(self) -> None:
        self.count += 1
        self.step()


class Recorded(CapturedStep):
    """A captured step whose recordings are repetitions."""

    def _warm_up(self, shape: Shape) -> None:
        self._step(shape)

    def _capture(self, shape: Shape) -> _Again:
        return _Again(lambda: self._step(shape))

    @property
    def replays(self) -> dict[Shape, int]:
        return {shape: graph.count for shape, graph in self._graphs.items() if isinstance(graph, _Again)}


def a_work(model: Any, count: int, **values: Any) -> Work:
    rows, training, device = random_rows(count), recipe(**values), torch.device("cpu")
    return Work(model.train(), rows, device, row_losses, training, build_optimizer(model, training), device)


@pytest.mark.parametrize("count, size", [(64, 8), (61, 8), (9, 8), (5, 8), (33, 32), (7, 1)])
def test_captured_steps_give_the_weights_of_eager_ones(count: int, size: int):
    """Batches are padded further, and the last one of an epoch is filled up with rows that must not count."""
    start = a_student()
    eager, captured = (a_work(copy.deepcopy(start), count, batch_size=size) for _ in range(2))
    plain = EagerStep(eager, size)
    recorded = Recorded(captured, size, widths=widths_up_to(max(captured.rows.lengths)))
    batches = [batch for epoch in range(3) for batch in epoch_batches(eager.rows.lengths, size, seed=1, epoch=epoch)]

    for batch in batches:
        want = plain.run(batch, stop=lambda: False)
        assert want is not None
        assert recorded.run(batch).loss.item() == pytest.approx(want.item(), abs=1e-5)

    assert distance(eager.model, captured.model) < 1e-5
    assert distance(eager.model, start) > 1e-3
    shapes = {recorded.shape(batch) for batch in batches}
    assert sum(recorded.replays.values()) == len(batches) - len(shapes), "all steps but the first of each shape"


def test_a_parameter_that_the_loss_does_not_reach_stays_as_it_is_also_when_captured():
    """Weight decay changes every parameter that has a gradient, even one of zero."""
    student = a_student()
    student.spare = torch.nn.Parameter(torch.ones(3))
    work = a_work(student, 16, weight_decay=0.5)
    step = Recorded(work, 8, widths=[12])

    for _ in range(3):
        step.run(list(range(8)))

    assert student.spare.tolist() == [1.0, 1.0, 1.0]


def with_modes(monkeypatch: pytest.MonkeyPatch, captured: type[CapturedStep] = Recorded) -> list[CapturedStep]:
    """Makes captured steps available on this CPU. Returns: those that are made."""
    made: list[CapturedStep] = []

    def make(*arguments: Any, **named: Any) -> CapturedStep:
        made.append(captured(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(stepper, "available_modes", lambda *_, **__: (Mode.EAGER, Mode.CAPTURED))
    monkeypatch.setattr(stepper, "CapturedStep", make)
    monkeypatch.setattr("distillchain_trainer.engine.device.modes.CAPTURE_PAYS_S", 0.0)
    return made


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_training_that_tries_modes_gives_the_weights_of_an_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch_size: int | None
):
    """Only a step of one micro-batch can be captured; with more, the trial falls back."""
    rows, training, start = random_rows(61), recipe(epochs=6), a_student()
    plain, other = copy.deepcopy(start), copy.deepcopy(start)
    train(plain, rows, training, tmp_path, micro_batch_size=micro_batch_size)
    made = with_modes(monkeypatch)

    progress = train(other, rows, training, tmp_path, micro_batch_size=micro_batch_size)

    assert distance(plain, other) < 1e-5
    assert bool(made) is (micro_batch_size is None)
    assert progress.mode in ("eager", "captured")


@pytest.mark.parametrize("fails_at", ["_warm_up", "_capture"])
def test_a_recording_that_fails_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails_at: str
):
    """With dropout: the step is made again with the same random numbers."""

    class Fails(Recorded):
        pass

    def fail(self: Recorded, shape: Shape) -> None:
        self._work.losses(self._rows, width=shape.width, full=shape.full).sum().backward()  # type: ignore[no-untyped-call]
        raise RuntimeError("operation not permitted when stream is capturing")

    setattr(Fails, fails_at, fail)
    rows, training, start = random_rows(61), recipe(epochs=4), a_student(dropout=0.2)
    plain, other = copy.deepcopy(start), copy.deepcopy(start)
    train(plain, rows, training, tmp_path)
    with_modes(monkeypatch, Fails)

    with caplog.at_level("INFO"):
        progress = train(other, rows, training, tmp_path)

    assert progress.mode == "eager"
    assert [vars(record)["mode"] for record in caplog.records if record.msg == "training mode chosen"] == ["eager"]
    assert distance(plain, other) < (1e-6 if fails_at == "_warm_up" else 1.0)


def test_a_resumed_training_goes_on_in_the_mode_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, training, start = random_rows(61), recipe(epochs=6), a_student(dropout=0.2)
    made = with_modes(monkeypatch)
    monkeypatch.setattr(ModeTrial, "seconds", {Mode.EAGER: 2.0, Mode.CAPTURED: 1.0})
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    train(whole, rows, training, tmp_path / "whole")
    stopped = train_until_stopped(first, rows, training, tmp_path / "first", at_look=40)
    forget(second)
    made.clear()
    monkeypatch.setattr(ModeTrial, "seconds", {Mode.EAGER: 1.0, Mode.CAPTURED: 2.0})  # another trial would choose eager

    progress = train(second, rows, training, tmp_path / "second", resume_from=stopped.state)

    assert progress.mode == "captured"
    assert len(made) == 1
    assert distance(whole, second) == 0.0


def test_a_gpu_is_needed_to_capture_or_compile():
    work = a_work(a_student(), 8)

    assert Stepper(work, 8, pads_freely=True).decided_mode is Mode.EAGER


@pytest.mark.parametrize(
    "size, micro_rows, compiler, want",
    [
        (1, 8, True, [Mode.EAGER, Mode.CAPTURED, Mode.COMPILED_CAPTURED, Mode.COMPILED]),
        (1, 8, False, [Mode.EAGER, Mode.CAPTURED]),
        (1, 4, True, [Mode.EAGER, Mode.COMPILED]),
        (2, 8, True, [Mode.EAGER, Mode.COMPILED]),
        (2, 8, False, [Mode.EAGER]),
    ],
    ids=["one process", "no compiler", "micro-batches", "two processes", "two processes, no compiler"],
)
def test_a_gpu_has_the_modes_that_can_work(
    monkeypatch: pytest.MonkeyPatch, size: int, micro_rows: int, compiler: bool, want: list[Mode]
):
    monkeypatch.setattr(stepper, "can_compile", lambda: compiler)
    gpu = torch.device("cuda")
    work = replace(a_work(a_student(), 8), device=gpu, rows_device=gpu, world=World(size=size))

    assert list(stepper.available_modes(work, micro_rows, pads_freely=True)) == want
    assert stepper.available_modes(work, micro_rows, pads_freely=False) == (Mode.EAGER,)


def test_compiled_layers_have_the_names_of_before_and_can_be_restored():
    student = a_student()
    names, before = list(student.state_dict()), [layer.forward for layer in repeated_layers(student)]

    compile_layers(student)
    compiled = [layer.forward for layer in repeated_layers(student)]
    uncompile_layers(student)

    assert len(before) == 2
    assert all(one is not other for one, other in zip(before, compiled, strict=True))
    assert [layer.forward for layer in repeated_layers(student)] == before
    assert list(student.state_dict()) == names


def test_measurements_between_epochs_and_after_the_training_do_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A pass of another shape without gradients was compiled first: 17 % of a training at BERT-large size (H100)."""
    rows, student = random_rows(61), a_student()
    before, calls, measured = [layer.forward for layer in repeated_layers(student)], [], []

    def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **named: Any) -> Any:
            calls.append(torch.is_grad_enabled())
            return forward(*inputs, **named)

        return call

    def validate() -> dict[str, float]:
        with torch.no_grad():
            student(input_ids=torch.ones(3, 5, dtype=torch.long))
        measured.append(len(calls))
        return {"accuracy": 0.5}

    monkeypatch.setattr(stepper, "available_modes", lambda *_, **__: (Mode.EAGER, Mode.COMPILED))
    monkeypatch.setattr(ModeTrial, "seconds", {Mode.EAGER: 2.0, Mode.COMPILED: 1.0})
    monkeypatch.setattr("distillchain_trainer.engine.device.modes.COMPILE_PAYS_S", 0.0)
    monkeypatch.setattr(torch, "compile", compiled)

    progress = train(student, rows, recipe(epochs=6), tmp_path, validate=validate)

    assert progress.mode == "compiled"
    assert calls
    assert all(calls), "none without gradients"
    assert measured[-1] < len(calls), "and compiled again after the measurement"
    assert [layer.forward for layer in repeated_layers(student)] == before


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_that_are_computed_twice_give_the_same_weights(dropout: float):
    start = a_student(dropout=dropout)
    once, twice = (a_work(copy.deepcopy(start), 40, batch_size=40) for _ in range(2))
    frugal = EagerStep(twice, 40)
    frugal.recompute()
    for _work, step in ((once, EagerStep(once, 40)), (twice, frugal)):
        torch.manual_seed(1)
        step.run(random.Random(1).sample(range(40), 40), stop=lambda: False)

    assert distance(once.model, twice.model) < 1e-6
    assert distance(once.model, start) > 1e-4
