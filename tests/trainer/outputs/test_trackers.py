"""Each tracker with its real client: what a reader of TensorBoard, MLflow or W&B finds of a run."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distillchain_api.resource.tracking import Mlflow, TensorBoard, Wandb
from distillchain_api.wire.work_order import StorageAddress
from distillchain_trainer.tracking.__main__ import open_tracker, relay
from distillchain_trainer.tracking.messages import End, Flush, Message, Point, Setup, Start
from distillchain_trainer.tracking.process import ENVIRONMENT, TrackerProcess

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.models  # the clients take seconds to import

RUN = {"name": "chain/small", "chain": "team/chain", "stage": "small", "digest": "d" * 64}
LINEAGE = {"teacher": "hf://org/teacher", "teacherWeights": "c0ffee"}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the process of a tracker; here the trackers run in that of the tests."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def start(attempt: str, *, resumed_at: int | None = None) -> Start:
    parameters = {"training.epochs": 2, "training.learningRate": 0.01, "task.labels": '["a", "b"]'}
    return Start(run="run-1", attempt=attempt, resumed_at=resumed_at, parameters=parameters, lineage=LINEAGE, **RUN)


def trained(step: int, loss: float) -> Point:
    return Point(step=step, values={"train/loss": loss, "train/learningRate": 0.001})


def measured(step: int, accuracy: float) -> Point:
    return Point(step=step, values={"validation/accuracy": accuracy})


def send(setup: Setup, *messages: Message) -> None:
    """One attempt. Without an End, its trainer was killed."""
    lines = "".join(message.to_json() + "\n" for message in messages)
    relay(open_tracker(setup), io.BytesIO(lines.encode()))


def a_setup(tmp_path: Path, attempt: str, **tracker: TensorBoard | Mlflow | Wandb) -> Setup:
    folder = tmp_path / attempt
    folder.mkdir()
    return Setup(folder=str(folder), storage=StorageAddress(uri=f"file://{tmp_path}/store"), **tracker)


FIRST = (start("1"), trained(1, 0.9), trained(2, 0.8), Flush(), measured(2, 0.5), trained(3, 0.7))
"""Saved at step 2, and killed after step 3."""
SECOND = (
    start("2", resumed_at=2),
    *(trained(2, 0.8), measured(2, 0.5), trained(3, 0.71), trained(4, 0.6), measured(4, 0.75)),
    End(outcome="committed", facts={"checkpoint": "s3://models/checkpoint"}),
)
STEPS = [1, 2, 3, 4]


def test_tensorboard_shows_each_step_of_a_resumed_run_once(tmp_path: Path):
    for attempt, messages in (("1", FIRST), ("2", SECOND)):
        send(a_setup(tmp_path, attempt, tensor_board=TensorBoard()), *messages)

    events = EventAccumulator(str(tmp_path / "store/tensorboard/team/chain/small-dddddddd")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == STEPS
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([0.9, 0.8, 0.71, 0.6])
    assert [(event.step, event.value) for event in events.Scalars("validation/accuracy")] == [(2, 0.5), (4, 0.75)]
    (lineage,) = events.Tensors("lineage/text_summary")
    assert b"hf://org/teacher" in lineage.tensor_proto.string_val[0]
    assert b"s3://models/checkpoint" in events.Tensors("outcome/text_summary")[-1].tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in events.Tags()["tensors"]


def test_tensorboard_shows_a_run_while_it_trains(tmp_path: Path):
    setup = a_setup(tmp_path, "1", tensor_board=TensorBoard(flush_seconds=1))
    tracker = open_tracker(setup)
    tracker.start(start("1"))
    events = EventAccumulator(str(tmp_path / "store/tensorboard/team/chain/small-dddddddd"))

    for step in (1, 2):
        tracker.log(Point(step=step, values={"train/loss": 1.0 / step}))
        tracker.flush()

        assert [event.step for event in events.Reload().Scalars("train/loss")] == list(range(1, step + 1))
    tracker.end("failed", {})


def test_mlflow_has_one_run_with_each_step_once(tmp_path: Path):
    uri = f"file://{tmp_path}/mlruns"
    for attempt, messages in (("1", FIRST), ("2", SECOND)):
        send(a_setup(tmp_path, attempt, mlflow=Mlflow(tracking_uri=uri)), *messages)

    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name("team/chain")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("chain/small", "FINISHED")
    assert run.data.params == {"training.epochs": "2", "training.learningRate": "0.01", "task.labels": '["a", "b"]'}
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)]
    accuracy = client.get_metric_history(run.info.run_id, "validation/accuracy")
    assert [point.step for point in accuracy] == [2, 4]
    tags = run.data.tags
    assert tags["distillchain.lineage.teacher"] == "hf://org/teacher"
    assert tags["distillchain.checkpoint"] == "s3://models/checkpoint"
    assert tags["distillchain.attempt"] == "2"


def test_mlflow_shows_a_run_whose_trainer_was_killed_as_killed(tmp_path: Path):
    uri = f"file://{tmp_path}/mlruns"
    send(a_setup(tmp_path, "1", mlflow=Mlflow(tracking_uri=uri, experiment="mine")), *FIRST)

    client = mlflow_client(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "KILLED"


def test_wandb_keeps_a_run_that_can_be_uploaded_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    spec = Wandb(project="distillation", entity="team", base_url="https://wandb.example")
    process = TrackerProcess("wandb", a_setup(tmp_path, "1", wandb=spec))
    for message in SECOND:
        process.send(message)
    assert process.finish(time.monotonic() + 100) is None

    (path,) = tmp_path.glob("wandb/offline-run-*/run-run-1.wandb")
    records = [wandb_internal_pb2.Record.FromString(record) for record in records_of(path.read_bytes())]
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.entity) == ("run-1", "distillation", "team")
    assert (run.display_name, run.run_group, run.job_type) == ("chain/small", "team/chain", "small")
    config = {item.key: item.value_json for item in run.config.update}
    assert config["training.epochs"] == "2"
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["train/step"] for row in rows if "train/loss" in row] == ["2", "3", "4"]
    assert [row["validation/accuracy"] for row in rows if "validation/step" in row] == ["0.5", "0.75"]
    (end,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0


def mlflow_client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient  # takes seconds to import

    return MlflowClient(tracking_uri=uri)


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, which has the log format of LevelDB: blocks of 32 KiB with records in parts."""
    block, header = 32_768, struct.Struct("<IHB")  # checksum, length, kind of part
    place, parts = len(":W&B") + 3, b""
    while place + header.size <= len(content):
        if block - place % block < header.size:
            place += block - place % block
            continue
        _, length, kind = header.unpack_from(content, place)
        parts += content[place + header.size : place + header.size + length]
        place += header.size + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
