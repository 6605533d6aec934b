"""TensorBoard: an event file for each attempt, copied into the chain's store while it grows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from distillchain_api.layout import tensorboard_prefix
from distillchain_api.resource.tracking import TensorBoard
from distillchain_store.store import Store
from distillchain_trainer.tracking.messages import Outcome, Point, Start


class TensorBoardTracker:
    """Writes events locally and stores the file."""

    def __init__(self, spec: TensorBoard, *, store: Store, folder: Path) -> None:
        self._spec, self._store, self._folder = spec, store, folder
        self._stored_at = 0.0
        self._prefix = ""

    def start(self, start: Start) -> None:
        """See Tracker."""
        # Named by the digest as well: with another recipe, a stage of this name is another run.
        self._prefix = tensorboard_prefix(start.chain, start.stage, start.digest)
        # TensorBoard reads the files of a run in the order of their names, which begin with the time.
        self._writer = EventFileWriter(str(self._folder), filename_suffix=f".{start.attempt}")
        if start.resumed_at is None:
            self._add(0, hparams_pb(start.parameters, trial_id=start.run))
            self._add_text("lineage", start.lineage)
        else:
            # TensorBoard then drops what an earlier file of the run has of this step and later ones: the attempt
            # before went on after its last saved state, and this one repeats those steps.
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(step=start.resumed_at, session_log=log))
        self.flush()

    def log(self, point: Point) -> None:
        """See Tracker."""
        self._add(
            point.step,
            summary_pb2.Summary(
                value=[summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            ),
        )
        if time.monotonic() - self._stored_at >= self._spec.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """See Tracker."""
        self._writer.flush()
        for path in self._folder.glob("events.*"):
            self._store.upload(f"{self._prefix}/{path.name}", path)
        self._stored_at = time.monotonic()

    def end(self, outcome: Outcome, facts: Mapping[str, str]) -> None:
        """See Tracker."""
        self._add_text("outcome", {"outcome": outcome, **facts})
        self.flush()
        self._writer.close()

    def _add_text(self, tag: str, facts: Mapping[str, str]) -> None:
        # As Markdown, which the page Text shows as a table.
        lines = ["| | |", "| --- | --- |", *(f"| {name} | `{fact}` |" for name, fact in facts.items())]
        value = summary_pb2.Summary.Value(
            tag=f"{tag}/text_summary",
            metadata=create_summary_metadata(tag, ""),
            tensor=make_tensor_proto("\n".join(lines).encode()),
        )
        self._add(0, summary_pb2.Summary(value=[value]))

    def _add(self, step: int, summary: Any) -> None:
        self._write(event_pb2.Event(step=step, summary=summary))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.add_event(event)
