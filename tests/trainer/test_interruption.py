"""A stage that is stopped: what it saves, and how the next attempt goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from distillchain_api.answer import Interrupted, parse_progress
from distillchain_trainer import stage
from distillchain_trainer.errors import GateNotMet, StopRequested
from distillchain_trainer.evaluate import Measurement
from distillchain_trainer.history import History
from distillchain_trainer.signals import Signals
from distillchain_trainer.store import Fingerprint
from distillchain_trainer.store_file import FileStore
from trainer.parts import (
    StopAfter,
    an_order,
    answer_in,
    manifest_of,
    read_json,
    run_here,
    save_bert,
    sentences,
    start_process,
    weights_of,
    write_data,
    write_tsv,
)

pytestmark = pytest.mark.models


def test_sigterm_in_training_saves_and_the_next_attempt_goes_on(root: Path):
    write_data(root / "data", train=6000)
    order = an_order(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1h"})
    process = start_process(order, root)
    assert process.stdout is not None
    for line in process.stdout:
        progress = parse_progress(line)
        if progress and progress.phase == "Train" and progress.step > 20:
            break
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 75, stderr
    stopped = answer_in(root)
    assert isinstance(stopped, Interrupted)
    assert stopped.step > 20
    assert stopped.message.startswith(f"stopped from outside; its state at step {stopped.step} is saved, ")
    (index,) = root.glob(f"store/stages/{order.digest}/resume/*/index.json")
    assert read_json(index)["step"] == stopped.step

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(6))
    assert stop.value.step > stopped.step, "it goes on from there"
    assert stop.value.step < stopped.step + 6


def test_a_resumed_student_is_the_one_that_was_never_stopped(root: Path):
    order = an_order(root, training={"epochs": 3})
    whole = run_here(
        order.model_copy(update={"storage": order.storage.model_copy(update={"uri": f"file://{root}/other"})}), root
    )
    for looks in (15, 10):
        with pytest.raises(StopRequested) as stop:
            run_here(order, root, attempt=f"a{looks}", signals=StopAfter(looks))
        assert 0 < stop.value.step < 30

    answer = run_here(order, root, attempt="last")

    run = manifest_of(root, order.digest).run
    assert (run.steps, run.resumed) == (30, True)
    assert weights_of(answer) == weights_of(whole)


def test_a_stop_while_validation_is_measured_saves_at_the_next_step(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Not after it: a large split takes longer than a pod is given to end in."""
    order = an_order(root, training={"epochs": 3})
    signals = Signals()
    measure = stage.measure

    def stopped_meanwhile(*args: Any, **more: Any) -> Measurement:
        signals.requested |= (root / "work-first/training").exists()  # the first split measured after it began
        return measure(*args, **more)

    monkeypatch.setattr(stage, "measure", stopped_meanwhile)
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="first", signals=signals)

    assert stop.value.step == 11, "ten steps an epoch: the first step of the second saves"
    history = History.read(next(root.glob(f"store/stages/{order.digest}/resume/*")))
    assert not [point for point in history.points if point.validation], "the measurement was given up"


def test_a_half_written_state_is_passed_over(root: Path, caplog: pytest.LogCaptureFixture):
    order = an_order(root, training={"epochs": 3})
    stops = []
    for looks in (12, 8):
        with pytest.raises(StopRequested) as stop:
            run_here(order, root, attempt=f"a{looks}", signals=StopAfter(looks))
        stops.append(stop.value.step)
    states = sorted(root.glob(f"store/stages/{order.digest}/resume/*"))
    assert len(states) == 2
    (states[1] / "optimizer.pt").write_bytes(b"half")

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(5))

    assert "saved state is not whole; an older one is taken" in caplog.text
    assert stops[0] < stop.value.step < stops[1]


def _inverted_labels(root: Path) -> None:
    write_tsv(root / "data/train.tsv", [(text, 1 - label) for text, label in sentences(160, 1)])


def _another_teacher(root: Path) -> None:
    weights = load_file(root / "teacher/model.safetensors")
    weights["classifier.bias"] += 0.01
    save_file(weights, root / "teacher/model.safetensors", metadata={"format": "pt"})


def _another_start(root: Path) -> None:
    save_bert(root / "encoder", labels=None, seed=6)


@pytest.mark.parametrize("change", [_inverted_labels, _another_teacher, _another_start])
def test_a_state_of_other_contents_is_not_taken_over(
    root: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    save_bert(root / "encoder", labels=None, seed=5)
    order = an_order(root, student={"model": f"file://{root}/encoder"})
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="first", signals=StopAfter(18))
    assert stop.value.step > 10
    change(root)

    with pytest.raises(StopRequested) as again:  # states of fewer steps are kept beside the older ones
        run_here(order, root, attempt="second", signals=StopAfter(12))
    assert again.value.step < stop.value.step
    assert "no saved state can be used" in caplog.text
    run_here(order, root, attempt="third")

    run = manifest_of(root, order.digest).run
    assert (run.steps, run.resumed) == (20, True)
    assert not list(root.glob("store/stages/*/resume/**/*")), "gone after the commit, the older ones too"


def test_a_classifier_with_weights_of_older_names_is_resumed_whole(root: Path):
    folder = save_bert(root / "legacy", seed=5)
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    save_file(older, folder / "model.safetensors", metadata={"format": "pt"})
    order = an_order(root, student={"model": f"file://{folder}"}, gate={"minMetric": 1.0})
    whole = run_here(
        an_order(root, student={"model": f"file://{folder}"}, storage={"uri": f"file://{root}/other"}), root
    )
    with pytest.raises(StopRequested):
        run_here(order, root, attempt="first", signals=StopAfter(12))
    with pytest.raises(GateNotMet):
        run_here(order, root, attempt="second")  # its state is finished: weights alone

    loose = an_order(root, student={"model": f"file://{folder}"})
    answer = run_here(loose, root, attempt="third")

    assert manifest_of(root, order.digest).run.resumed
    assert weights_of(answer) == weights_of(whole)


def test_a_killed_attempt_loses_no_more_than_the_save_interval(root: Path):
    write_data(root / "data", train=6000)
    order = an_order(root, training={"epochs": 30, "batchSize": 8}, template={"saveInterval": "1s"})
    process = start_process(order, root)
    assert process.stdout is not None
    stage = root / f"store/stages/{order.digest}"
    for line in process.stdout:  # about one a second
        if "Train" in line and len(list(stage.glob("resume/*/index.json"))) == 2:
            break
    process.kill()
    process.communicate()
    saved = max(read_json(path)["step"] for path in stage.glob("resume/*/index.json"))

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(4))  # two are the tokenizer's

    assert 0 < saved < stop.value.step <= saved + 2
    assert len(list(stage.glob("resume/*/index.json"))) == 2, "the newest two"


def test_a_stop_while_uploading_is_told_with_the_finished_training_and_leaves_no_half_attempt(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    order, signals = an_order(root), Signals()
    real = FileStore.upload

    def upload(self: FileStore, key: str, path: Path) -> Fingerprint:
        if "/attempts/" in key and key.endswith("model.safetensors"):
            signals._on_signal(signal.SIGTERM, None)
        return real(self, key, path)

    monkeypatch.setattr(FileStore, "upload", upload)
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, signals=signals)

    assert stop.value.step == 20
    assert not (root / f"store/stages/{order.digest}/attempts").exists()
