"""Compiled layers in the pass of a teacher. A CPU compiles none: here something else stands in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distillchain_api.resource.training import Training
from distillchain_store.folder import FileStore
from distillchain_trainer.data.split import key_of
from distillchain_trainer.engine.device.compiled import repeated_layers
from distillchain_trainer.engine.device.modes import Mode
from distillchain_trainer.engine.encoding.encoded import Encoded
from distillchain_trainer.engine.passes import pass_layers, teacher_outputs
from distillchain_trainer.engine.passes.forward import forward
from distillchain_trainer.engine.passes.pass_layers import COMPILE_PAYS_S, TIMED_BATCHES, PassLayers, pass_modes
from distillchain_trainer.engine.passes.teacher_outputs import TeacherPass
from distillchain_trainer.errors import StopRequested
from trainer.loop_parts import a_student

pytestmark = pytest.mark.models

BOTH = (Mode.EAGER, Mode.COMPILED)
Call = Callable[..., Any]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The calls of compiled layers: a list of tokens. Replace `.fails` to have them fail."""

    class Calls(list[int]):
        fails: Callable[[int], Exception | None] = staticmethod(lambda _: None)  # type: ignore[assignment]

    calls = Calls()

    def compile_(call: Call) -> Call:
        def run(states: torch.Tensor, *inputs: Any, **named: Any) -> Any:
            calls.append(states.shape[0] * states.shape[1])
            if error := calls.fails(calls[-1]):
                raise error
            return call(states, *inputs, **named)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


def layers_of(model: Any) -> list[Any]:
    """What is in the place of the layers' own `forward`; all None: nothing."""
    return [layer.__dict__.get("forward") for layer in repeated_layers(model)]


def rows(count: int) -> Encoded:
    dice = np.random.default_rng(count)
    return Encoded.of([dice.integers(1, 50, size, dtype=np.int32) for size in dice.integers(3, 15, count)], pad_id=0)


def outputs(model: Any, encoded: Encoded, layers: PassLayers | None = None) -> np.ndarray:
    found = np.full((len(encoded), 3), np.nan)
    for part in forward(model, encoded, lambda answer, _: answer.logits, precision="float32", layers=layers):
        found[part.rows] = part.outputs
    return found


@pytest.mark.parametrize(
    "device, compiler, want",
    [("cpu", True, (Mode.EAGER,)), ("cuda", True, BOTH), ("cuda", False, (Mode.EAGER,))],
)
def test_a_gpu_with_a_c_compiler_may_compile(
    monkeypatch: pytest.MonkeyPatch, device: str, compiler: bool, want: tuple[Mode, ...]
):
    monkeypatch.setattr(pass_layers, "device_of", lambda _: torch.device(device))
    monkeypatch.setattr(pass_layers, "can_compile", lambda: compiler)

    assert pass_modes(a_student()) == want


@pytest.mark.parametrize("fastest", BOTH)
def test_the_faster_way_is_kept_by_the_time_of_a_token(fastest: Mode):
    """Batches have different sizes. Up to 14 of them take the time of a compilation."""
    layers, seen = PassLayers(a_student(), BOTH, tokens=10**9), []
    for tokens in range(1_000, 1_000 + 3 * TIMED_BATCHES):
        seen.append(layers.mode)
        compiles = layers.mode is Mode.COMPILED and seen.count(Mode.COMPILED) <= 14
        layers.batch_done(tokens * (1e-3 if layers.mode is fastest else 2e-3) + 15.0 * compiles, tokens)

    assert seen[:TIMED_BATCHES] == [Mode.EAGER] * TIMED_BATCHES
    assert seen[TIMED_BATCHES : 2 * TIMED_BATCHES] == [Mode.COMPILED] * TIMED_BATCHES
    assert set(seen[2 * TIMED_BATCHES :]) == {fastest}


@pytest.mark.parametrize("left_s, tries", [(0.9 * COMPILE_PAYS_S, False), (1.1 * COMPILE_PAYS_S, True)])
def test_a_pass_that_is_soon_over_is_not_compiled(left_s: float, tries: bool):
    layers = PassLayers(a_student(), BOTH, tokens=100 * TIMED_BATCHES + int(100 * left_s))
    for _ in range(TIMED_BATCHES):
        layers.batch_done(1.0, 100)

    assert (layers.mode is Mode.COMPILED) is tries


def test_compiled_layers_answer_for_every_row(compiled: list[int]):
    model, encoded = a_student(), rows(200)
    layers = PassLayers(model, BOTH, decided=Mode.COMPILED)

    found = outputs(model, encoded, layers)

    assert compiled
    assert None not in layers_of(model)
    layers.close()
    assert layers_of(model) == [None, None]
    np.testing.assert_array_equal(found, outputs(model, encoded))


@pytest.mark.parametrize("at", [1, 4])
def test_where_compiled_layers_fail_the_pass_goes_on_without_them(
    compiled: Any, caplog: pytest.LogCaptureFixture, at: int
):
    """At the first batch, or at a later one of another shape."""
    model, encoded = a_student(), rows(300)
    compiled.fails = lambda _: ValueError("no such kernel") if len(compiled) == at else None
    layers = PassLayers(model, BOTH, decided=Mode.COMPILED)

    found = outputs(model, encoded, layers)

    np.testing.assert_array_equal(found, outputs(model, encoded))
    assert len(compiled) == at
    assert layers.mode is Mode.EAGER
    assert layers_of(model) == [None, None]
    assert "no such kernel" in caplog.records[0].why  # type: ignore[attr-defined]


def test_compiled_layers_that_need_more_memory_are_given_up(compiled: Any):
    """The pass ended with OutOfMemory, although the layers as they are fitted."""
    model, encoded = a_student(), rows(300)
    compiled.fails = lambda _: torch.OutOfMemoryError("CUDA out of memory")
    layers = PassLayers(model, BOTH, decided=Mode.COMPILED)

    found = outputs(model, encoded, layers)

    np.testing.assert_array_equal(found, outputs(model, encoded))
    assert layers.mode is Mode.EAGER


@pytest.mark.parametrize("modes", [(Mode.EAGER,), BOTH])
def test_the_compiler_forgets_the_teacher(
    monkeypatch: pytest.MonkeyPatch, compiled: list[int], modes: tuple[Mode, ...]
):
    """A student of the same class was compiled for any width, and after two teachers not at all (torch's limit)."""
    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    layers = PassLayers(a_student(), modes, decided=modes[-1])
    layers.run(lambda: None)

    layers.close()

    assert len(resets) == len(modes) - 1


@pytest.mark.parametrize("stops", [False, True])
def test_after_its_pass_a_teacher_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[int], stops: bool
):
    made: list[PassLayers] = []
    given: list[int] = []

    def make(model: Any, _: tuple[Mode, ...], *, tokens: int) -> PassLayers:
        given.append(tokens)
        made.append(PassLayers(model, BOTH, tokens=tokens))
        return made[-1]

    monkeypatch.setattr(teacher_outputs, "PassLayers", make)
    monkeypatch.setattr(teacher_outputs, "SORTED_ROWS", 700)  # so that the pass has three parts
    monkeypatch.setattr(pass_layers, "COMPILE_PAYS_S", 0.0)
    monkeypatch.setattr(pass_layers, "TIMED_BATCHES", 8)
    model, encoded = a_student(), rows(2_000)
    asked = TeacherPass(
        store=FileStore(f"file://{tmp_path}/store"),
        digest="d" * 64,
        model=model,
        outputs_of=lambda answer, _: answer.logits,
        encoded=encoded,
        keys=[key_of((str(row),)) for row in range(2_000)],
        training=Training(),
        columns=None,
        check=lambda _: None,
        folder=tmp_path,
        save_interval_s=3600.0,
        stop=lambda: stops and bool(compiled),
        on_batch=lambda *_: None,
    )

    if stops:
        with pytest.raises(StopRequested):
            asked.run()
    else:
        answers = asked.run()
        np.testing.assert_allclose(answers.values[answers.place], outputs(model, encoded), rtol=1e-5, atol=1e-6)

    assert compiled
    assert layers_of(model) == [None, None]
    assert given == [int(encoded.lengths.sum())]
    assert (made[0].tokens_left == 0) is not stops
