"""A stage that is stopped: what it saves, and how the next attempt continues."""

from __future__ import annotations

import functools
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cluster.s3 import S3Server
from distillchain_api.wire.answer import Interrupted, ProgressPhase, parse_progress
from distillchain_store.errors import StorageDenied, StorageUnavailable, StoreError
from distillchain_store.folder import FileStore
from distillchain_store.patience import TRAINED_S
from distillchain_store.s3.store import S3Store
from distillchain_store.store import Fingerprint
from distillchain_trainer.engine.training.history import History
from distillchain_trainer.engine.training.saved_state import ResumeIndex, ResumeStates
from distillchain_trainer.errors import GateNotMet, StopRequested
from distillchain_trainer.signals import Signals
from distillchain_trainer.stage import measure, run
from distillchain_trainer.stage.progress import Reporter
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
    assert stopped.message.startswith(f"interrupted; its state at step {stopped.step} is saved, ")
    (index,) = root.glob(f"store/stages/{order.digest}/resume/*/index.json")
    assert read_json(index)["step"] == stopped.step

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(6))
    assert stop.value.step > stopped.step, "it continues from there"
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


def test_a_stop_while_an_epoch_is_measured_saves_at_once_and_the_next_attempt_measures_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not after it: a large split takes longer than a pod is given to end in."""
    order = an_order(root, training={"epochs": 3})
    signals = Signals()
    real = measure.all_outputs

    def stopped_meanwhile(*args: Any, **more: Any) -> Any:
        signals.requested |= (root / "work-first/training").exists()  # the first split measured after it began
        return real(*args, **more)

    monkeypatch.setattr(measure, "all_outputs", stopped_meanwhile)
    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="first", signals=signals)

    assert stop.value.step == 10, "the end of the first epoch"
    history = History.read(next(root.glob(f"store/stages/{order.digest}/resume/*")))
    assert not [point for point in history.points if point.validation], "the measurement was given up"

    run_here(order, root, attempt="second")
    history = History.read(next(root.glob(f"store/stages/{order.digest}/attempts/second/results")))
    assert [point.step for point in history.points if point.validation] == [10, 20, 30]


def test_an_incomplete_state_is_skipped(root: Path, caplog: pytest.LogCaptureFixture):
    order = an_order(root, training={"epochs": 3})
    stops = []
    for looks in (12, 8):
        with pytest.raises(StopRequested) as stop:
            run_here(order, root, attempt=f"a{looks}", signals=StopAfter(looks))
        stops.append(stop.value.step)
    states = sorted(root.glob(f"store/stages/{order.digest}/resume/*"))
    assert len(states) == 2
    (states[1] / "optimizer.safetensors").write_bytes(b"half")

    with pytest.raises(StopRequested) as stop:
        run_here(order, root, attempt="next", signals=StopAfter(5))

    assert "an incomplete state is skipped; an older one is used" in caplog.text
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
        run_here(order, root, attempt="next", signals=StopAfter(12))  # some looks are made before training

    assert 0 < saved < stop.value.step <= saved + 12
    assert len(list(stage.glob("resume/*/index.json"))) == 2, "the newest two"


def test_a_stop_during_the_upload_keeps_the_finished_training_and_leaves_no_half_attempt(
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


def a_state(folder: Path, step: int) -> tuple[Path, ResumeIndex]:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(str(step))
    return folder, ResumeIndex(step=step, of=1000, elapsed_s=0.0, model_s=0.0, train_s=0.0, final_loss=0.0)


def test_states_that_cannot_be_used_keep_no_newer_one_out(tmp_path: Path):
    """They may be further on: training that starts anew saves at lower steps, and must find those again."""
    store = FileStore(f"file://{tmp_path}/store")
    before = ResumeStates(store, "d" * 64, "before", source="s" * 64)
    for step in (800, 900):
        before.save(*a_state(tmp_path / "state", step))
    for path in tmp_path.glob("store/**/weights"):
        path.write_text("altered")
    states = ResumeStates(store, "d" * 64, "after", source="s" * 64)
    assert states.load_newest(tmp_path / "none") is None

    for step in (100, 200, 300):
        states.save(*a_state(tmp_path / "state", step))

    found = ResumeStates(store, "d" * 64, "next", source="s" * 64).load_newest(tmp_path / "found")
    assert found is not None
    assert (found[0].step, (found[1] / "weights").read_text()) == (300, "300")
    assert len(list(tmp_path.glob("store/**/index.json"))) == 2 + 2


def test_a_state_of_a_release_that_knows_more_is_used(tmp_path: Path):
    states = ResumeStates(FileStore(f"file://{tmp_path}/store"), "d" * 64, "a", source="s" * 64)
    states.save(*a_state(tmp_path / "state", 7))
    (index,) = tmp_path.glob("store/**/index.json")
    index.write_text(json.dumps(read_json(index) | {"dropout": "seen"}))

    assert states.load_newest(tmp_path / "found") is not None


class Outage(Reporter):
    """The store goes away in the middle of training, and comes back after its last step."""

    def __init__(self, server: S3Server) -> None:
        super().__init__("small", None)
        self._server = server
        self.back = threading.Timer(4.0, server.start)

    def report(self, phase: ProgressPhase, step: int, of: int, **_: float | None) -> None:
        if (phase, step) == ("Train", 2):
            self._server.stop()
        if (phase, step) == ("Train", of):
            self.back.start()


@pytest.mark.cluster
def test_a_store_that_is_away_while_nothing_is_lost_ends_no_training(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with S3Server(tmp_path / "s3") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        bucket = server.ensure_bucket("models")
        impatient = functools.partial(S3Store, patience_s=0.5)
        monkeypatch.setattr(run, "open_store", lambda uri, **address: impatient(uri, **address))
        order = an_order(root, storage={"uri": f"{bucket}/out"}, template={"saveInterval": "1s"})
        slow = order.model_copy(update={"save_interval_s": 0})  # at every step
        outage = Outage(server)
        (root / "work").mkdir()

        answer = run.run_stage(slow, attempt="a", folder=root / "work", reporter=outage, signals=Signals())
        outage.back.join()

        assert not answer.reused
        assert "the state is not saved; training continues" in [record.message for record in caplog.records]
        manifest = f"out/stages/{order.digest}/manifest.json"
        assert server.client().get_object(Bucket="models", Key=manifest)["Body"].read()


def test_results_that_are_nowhere_else_wait_for_the_store_as_long_as_training_does(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    """An outage while the teacher's logits were written ended a stage after 30 s."""
    waits: dict[str, float] = {}
    real = FileStore.upload

    def upload(self: FileStore, key: str, path: Path) -> Fingerprint:
        kind = "checkpoint" if "/attempts/" in key else key.partition("/")[0]
        waits[kind] = self.patience()
        return real(self, key, path)

    monkeypatch.setattr(FileStore, "upload", upload)

    run_here(an_order(root), root)

    assert waits == {"logits": TRAINED_S, "stages": TRAINED_S, "checkpoint": TRAINED_S}


@pytest.mark.parametrize("fault", [StorageDenied("expired"), StorageUnavailable("away")])
def test_a_state_that_cannot_be_saved_on_the_way_ends_no_training(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: StoreError
):
    """A token that expires in the middle of a training cost all of it."""
    order = an_order(root).model_copy(update={"save_interval_s": 0})  # a state after every step
    real = ResumeStates.save

    def save(self: ResumeStates, folder: Path, index: ResumeIndex) -> None:
        if index.step < index.of:
            raise fault
        real(self, folder, index)

    monkeypatch.setattr(ResumeStates, "save", save)

    answer = run_here(order, root)

    assert manifest_of(root, order.digest).run.steps == 20
    assert not answer.reused
    assert "the state is not saved; training continues" in caplog.text
