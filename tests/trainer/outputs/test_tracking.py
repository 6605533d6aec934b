"""What a stage has of its trackers: one run over all attempts, and no harm from one that fails."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distillchain_api.resource.tracking import Mlflow, TensorBoard
from distillchain_api.wire.records import HISTORY_FILE, HistoryPoint, lines_of
from distillchain_api.wire.work_order import StorageAddress, WorkOrder
from distillchain_trainer.errors import StopRequested
from distillchain_trainer.tracking.messages import End, Setup
from distillchain_trainer.tracking.process import FAULT_FILE, TrackerProcess
from trainer.outputs.test_trackers import start, trained
from trainer.parts import StopAfter, an_order, run_here, save_bert, start_process, write_data

pytestmark = pytest.mark.models

REAL_KILLPG = os.killpg


def a_tracked_order(root: Path, **tracking: Any) -> WorkOrder:
    if not (root / "data").exists():
        write_data(root / "data")
        save_bert(root / "teacher")
    return an_order(root, teacher={"model": f"file://{root}/teacher", "fineTune": {}}, template={"tracking": tracking})


@pytest.fixture
def hanging() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


def test_tensorboard_has_the_history_of_a_stage_that_was_stopped_and_resumed(tmp_path: Path):
    order = a_tracked_order(tmp_path, tensorBoard={})
    with pytest.raises(StopRequested):
        run_here(order, tmp_path, attempt="first", signals=StopAfter(15))

    answer = run_here(order, tmp_path, attempt="second")

    results = Path(answer.checkpoint.removeprefix("file://")).parent / "results"
    points = [HistoryPoint.parse(line) for line in lines_of((results / HISTORY_FILE).read_text())]
    (run,) = tmp_path.glob("store/tensorboard/default/small/*")
    assert len(list(run.iterdir())) == 2, "an event file of each attempt"
    events = EventAccumulator(str(run)).Reload()
    losses = [(point.step, point.loss) for point in points if point.loss is not None]
    assert [event.step for event in events.Scalars("train/loss")] == [step for step, _ in losses]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([loss for _, loss in losses])
    accuracy = {point.step: point.validation["accuracy"] for point in points if point.validation is not None}
    assert {event.step: event.value for event in events.Scalars("validation/accuracy")} == pytest.approx(accuracy)
    assert all(event.value > 0 for event in events.Scalars("train/examplesPerSecond"))
    assert answer.checkpoint.encode() in events.Tensors("outcome/text_summary")[-1].tensor_proto.string_val[0]


def test_a_tracker_that_is_away_leaves_one_warning_and_a_committed_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    order = a_tracked_order(tmp_path, mlflow={"trackingUri": "http://127.0.0.1:1"})

    answer = run_here(order, tmp_path)

    (warning,) = [sentence for sentence in answer.warnings if "tracking" in sentence]
    assert warning.startswith("spec.template.tracking.mlflow: MlflowException: ")
    assert warning.endswith("values are missing there, and the stage is not affected")
    assert len(warning.encode()) < 300, "it fits into the termination message"


def test_a_server_that_hangs_is_not_waited_for(tmp_path: Path, hanging: int):
    setup = Setup(
        folder=str(tmp_path),
        storage=StorageAddress(uri=f"file://{tmp_path}/store"),
        mlflow=Mlflow(tracking_uri=f"http://127.0.0.1:{hanging}"),
    )
    process = TrackerProcess("mlflow", setup)
    for step in range(100_000):  # more than a pipe holds
        process.send(trained(step, 0.5))

    process.send(End(outcome="committed"))
    why = process.finish(time.monotonic() + 0.5)

    assert why in ("its server did not take all values in time", "it does not take the values")


@pytest.fixture
def tensorboard(tmp_path: Path) -> Iterator[TrackerProcess]:
    """A tracker that has started its run."""
    setup = Setup(
        folder=str(tmp_path), storage=StorageAddress(uri=f"file://{tmp_path}/store"), tensor_board=TensorBoard()
    )
    tracker = TrackerProcess("tensorBoard", setup)
    tracker.send(start("1"))
    yield tracker
    with contextlib.suppress(OSError):
        REAL_KILLPG(tracker._process.pid, signal.SIGKILL)
    tracker._process.wait()


def test_a_tracker_that_does_not_end_when_it_is_killed_is_not_waited_for(
    tensorboard: TrackerProcess, monkeypatch: pytest.MonkeyPatch
):
    """As a process that waits for a file system that is away."""
    tensorboard._process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(os, "killpg", lambda *_: None)

    for step in range(150_000):  # more than pipe and memory take
        tensorboard.send(trained(step, 0.5))
    why = tensorboard.finish(time.monotonic() + 0.5)

    assert why == "it does not take the values"


def test_a_tracker_that_dies_costs_a_sentence(tensorboard: TrackerProcess):
    tensorboard._process.kill()
    tensorboard._process.wait()

    for step in range(100):
        tensorboard.send(trained(step, 0.5))

    assert tensorboard.finish(time.monotonic() + 5) == "its client has ended"


def test_a_name_that_utf_8_cannot_express_does_not_end_the_training(tensorboard: TrackerProcess):
    tensorboard.send(start("1").model_copy(update={"lineage": {"start": "\ud800"}}))

    tensorboard.send(End(outcome="committed"))

    assert tensorboard.finish(time.monotonic() + 60) is None


def test_a_tracker_whose_last_words_are_no_text_costs_a_sentence(tensorboard: TrackerProcess, tmp_path: Path):
    (tmp_path / FAULT_FILE).write_bytes(b"\xff\xfe")
    tensorboard._process.kill()

    assert tensorboard.finish(time.monotonic() + 5) == "\ufffd\ufffd"


def test_a_client_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tensorboard.py").write_text("raise ModuleNotFoundError(name='tensorboard')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    setup = Setup(folder=str(tmp_path), storage=StorageAddress(uri="file:///none"), tensor_board=TensorBoard())

    process = TrackerProcess("tensorBoard", setup)
    process.send(start("1"))

    assert process.finish(time.monotonic() + 60) == (
        "tensorboard is not installed; use an image with the extra `trackers` of distillchain"
    )


class Refusing(http.server.BaseHTTPRequestHandler):
    """Refuses every request, and quotes its credentials."""

    def do_GET(self) -> None:
        body = json.dumps({"error_code": "PERMISSION_DENIED", "message": f"no: {self.headers['Authorization']}"})
        self.send_response(403)
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_credentials_of_a_tracker_are_in_no_message(tmp_path: Path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    order = a_tracked_order(tmp_path, mlflow={"trackingUri": f"http://127.0.0.1:{server.server_port}"})

    process = start_process(order, tmp_path, MLFLOW_TRACKING_TOKEN="sesame-open-now")
    stdout, stderr = process.communicate(timeout=300)
    server.shutdown()
    server.server_close()

    assert process.returncode == 0, stderr
    answer = (tmp_path / "termination").read_text()
    assert "no: Bearer <MLFLOW_TRACKING_TOKEN>" in answer
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"sesame" in content for content in (stdout.encode(), stderr.encode(), *kept))
