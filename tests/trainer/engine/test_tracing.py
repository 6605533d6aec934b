"""A profiler trace of some steps, asked for by SIGUSR1."""

from __future__ import annotations

import copy
import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from distillchain_trainer.engine.training import loop, tracing
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.signals import Signals
from trainer.loop_parts import a_student, distance, random_rows, recipe, row_losses, train

pytestmark = pytest.mark.models


@pytest.fixture
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    signals = Signals()
    signals.install()
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)


def traced(folder: Path, signals: Signals, *, keep: Callable[[Path, int], None], epochs: int = 3) -> object:
    student = a_student(dropout=0.1)
    os.kill(os.getpid(), signal.SIGUSR1)
    folder.mkdir()
    loop.train(
        student,
        random_rows(61),
        row_losses,
        loop.Settings(recipe(epochs=epochs), micro_batch_size=None, folder=folder, save_interval_s=3600.0),
        resume_from=None,
        train_s_before=0.0,
        history=History([]),
        hooks=loop.Hooks(
            stop=lambda: signals.requested,
            on_step=lambda _: None,
            save=lambda *_: True,
            validate=lambda _: {"accuracy": 0.5},
            wants_trace=signals.take_trace_request,
            keep_trace=keep,
        ),
    )
    return student


def test_a_trace_has_the_operations_of_the_next_steps_and_changes_no_weight(tmp_path: Path, signals: Signals):
    kept: list[tuple[int, bytes]] = []
    plain = copy.deepcopy(a_student(dropout=0.1))
    train(plain, random_rows(61), recipe(epochs=3), tmp_path)

    student = traced(tmp_path / "traced", signals, keep=lambda path, step: kept.append((step, path.read_bytes())))

    ((step, content),) = kept
    events = json.loads(gzip.decompress(content))["traceEvents"]
    assert step == tracing.STEPS
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == tracing.STEPS
    assert distance(plain, student) == 0.0
    assert list((tmp_path / "traced").iterdir()) == [], "no file is left on the disk of the pod"


def test_a_trace_that_is_asked_for_near_the_end_has_fewer_steps(tmp_path: Path, signals: Signals):
    kept: list[int] = []

    traced(tmp_path / "traced", signals, keep=lambda _, step: kept.append(step), epochs=1)

    assert kept == [8], "61 rows are 8 steps"


def test_a_trace_that_cannot_be_stored_is_a_warning(tmp_path: Path, signals: Signals, caplog: pytest.LogCaptureFixture):
    def keep(path: Path, step: int) -> None:
        raise OSError("the store is away")

    traced(tmp_path / "traced", signals, keep=keep)

    assert "the trace could not be kept" in caplog.text
