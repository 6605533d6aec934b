"""All trackers of one stage: what they are sent, and when. Knows no client of a tracker, and never raises."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic.alias_generators import to_camel

from distillchain_api.base import Record
from distillchain_api.wire.manifest import Manifest, ModelFacts
from distillchain_api.wire.records import HistoryPoint
from distillchain_api.wire.work_order import WorkOrder
from distillchain_trainer.tracking.messages import End, Flush, Message, Outcome, Point, Setup, Start
from distillchain_trainer.tracking.process import TrackerProcess

log = logging.getLogger(__name__)

STATE_FILE = "tracking.json"
COMMITTED_S = 30.0  # for the last values of a committed stage: its result is safe, and the next stage waits
RUN_CHARS = 64  # of an id, as W&B accepts it
OTHERWISE_S = 5.0  # of an interrupted or failed one: the grace period of a pod is needed for its state


class TrackingState(Record):
    """What a saved state keeps, so that the next attempt continues the same run."""

    run: str
    sent: dict[str, int] = Field(default_factory=dict)
    """The last step of each series."""
    last: list[Point] = Field(default_factory=list)
    """The points at the step of the state. TensorBoard drops this step and later ones of the attempt before."""


class Tracking:
    """The trackers of one stage, on rank 0; without trackers it does nothing."""

    def __init__(self, processes: Sequence[TrackerProcess] = (), *, unstarted: Mapping[str, str] | None = None) -> None:
        """Args:
        unstarted: trackers whose process could not be started, and why.
        """
        self._processes = list(processes)
        self._unstarted = dict(unstarted or {})
        self._state: TrackingState | None = None
        self._newest: HistoryPoint | None = None
        self._rate_from = (0, 0.0)  # step and seconds of training at the last point
        self._batch_size = 0

    def begin(
        self,
        order: WorkOrder,
        attempt: str,
        lineage: Mapping[str, str],
        *,
        resumed_from: Path | None,
        step: int,
        train_s: float,
    ) -> None:
        """Opens the runs, or continues those of a saved state.

        Args:
            lineage: digests and sources of what the student is made from.
            resumed_from: the folder of the state.
            step: of the state; 0 without one.
            train_s: seconds that earlier attempts trained.
        """
        if not self._processes:
            return
        self._rate_from, self._batch_size = (step, train_s), order.training.batch_size
        found = _read_state(resumed_from)
        # Without a state nothing is left of an attempt before, so it is another run. A state without this file was
        # saved while tracking was off: then the whole curve is sent, from the history in the state.
        self._state = found or TrackingState(run=f"{order.digest[:12]}-{attempt}"[:RUN_CHARS])
        resumed_at = step if found else None
        self._send(build_start(order, attempt, lineage, run=self._state.run, resumed_at=resumed_at))
        for point in found.last if found else ():
            self._send(point)

    def follow(self, points: Sequence[HistoryPoint], *, step: int, train_s: float) -> None:
        """Sends the points that are new.

        Args:
            train_s: seconds of training up to `step`.
        """
        # This is called after each step, and most steps make no point.
        if self._state is None or not points or points[-1] is self._newest:
            return
        self._newest = points[-1]
        before, before_s = self._rate_from
        rate = (step - before) * self._batch_size / (train_s - before_s) if train_s > before_s else None
        for point in map(_measured_or_trained(rate), points):
            if point.step > self._state.sent.get(point.series, -1):
                self._send_point(point)
                self._rate_from = (step, train_s)

    def saved(self, folder: Path, *, step: int) -> None:
        """Adds to a state in the making what `begin` needs."""
        if self._state is None:
            return
        last = [point for point in self._state.last if point.step == step]
        state = self._state.model_copy(update={"last": last})
        (folder / STATE_FILE).write_text(state.to_json(), encoding="utf-8")
        self._send(Flush())

    def committed(self, manifest: Manifest) -> list[str]:
        """Sends the final metrics, and closes the runs. Returns: warnings for the user."""
        if self._state is not None:
            for values in final_values(manifest):
                self._send_point(Point(step=manifest.run.steps, values=values))
        return self._end(End(outcome="committed", facts=final_facts(manifest)), within_s=COMMITTED_S)

    def stopped(self, outcome: Outcome) -> None:
        """Closes the runs of a stage that is not committed."""
        for sentence in self._end(End(outcome=outcome), within_s=OTHERWISE_S):
            log.warning("%s", sentence)

    def _end(self, end: End, *, within_s: float) -> list[str]:
        self._send(end)
        # One limit for all of them: they work at the same time.
        deadline = time.monotonic() + within_s
        processes, self._processes, self._state = self._processes, [], None
        faults = self._unstarted | {process.name: process.finish(deadline) for process in processes}
        self._unstarted = {}
        return [
            f"spec.template.tracking.{name}: {why}; values are missing there, and the stage is not affected"
            for name, why in faults.items()
            if why
        ]

    def _send_point(self, point: Point) -> None:
        assert self._state is not None
        self._state.sent[point.series] = point.step
        self._state.last[:] = [kept for kept in self._state.last if kept.step == point.step] + [point]
        self._send(point)

    def _send(self, message: Message) -> None:
        for process in self._processes:
            process.send(message)


def open_tracking(order: WorkOrder, *, folder: Path) -> Tracking:
    """Starts a process for each tracker of the work order.

    Args:
        folder: for files in the making.
    """
    processes, unstarted = [], {}
    for name, spec in order.tracking:
        if spec is None:
            continue
        place = folder / name
        setup = Setup(folder=str(place), storage=order.storage, **{name: spec})
        try:
            place.mkdir(parents=True, exist_ok=True)
            processes.append(TrackerProcess(to_camel(name), setup))
        except OSError as error:  # no memory, a full disk, or too many processes or open files
            unstarted[to_camel(name)] = f"its process could not be started ({error.strerror})"
    return Tracking(processes, unstarted=unstarted)


def build_start(
    order: WorkOrder, attempt: str, lineage: Mapping[str, str], *, run: str, resumed_at: int | None
) -> Start:
    """What the trackers learn of a run at its beginning."""
    parts = {"task": order.task, "student": order.student, "training": order.training}
    if order.distillation is not None:
        parts["distillation"] = order.distillation
    recipe = {name: part.to_document() for name, part in parts.items()}
    return Start(
        run=run,
        resumed_at=resumed_at,
        name=f"{order.chain.rpartition('/')[2]}/{order.stage}",
        chain=order.chain,
        stage=order.stage,
        digest=order.digest,
        attempt=attempt,
        parameters=dict(_flat(recipe)),
        lineage=dict(lineage),
    )


def final_values(manifest: Manifest) -> list[dict[str, float]]:
    """Series of a committed stage. Validation of the student is the last point of the history."""
    series = [_named("test", manifest.student.metrics.test), _named("student", _size_and_speed(manifest.student))]
    if manifest.teacher is not None:
        metrics = manifest.teacher.metrics
        taught = _named("teacher/validation", metrics.validation) | _named("teacher/test", metrics.test)
        series.append(taught | _named("teacher", _size_and_speed(manifest.teacher)))
    return [values for values in series if values]


def final_facts(manifest: Manifest) -> dict[str, str]:
    """What is known of a student once it is committed."""
    doubt = {"doubt": manifest.student.doubt} if manifest.student.doubt else {}
    return {"checkpoint": manifest.checkpoint, "weights": manifest.student.revision, **doubt}


def _size_and_speed(model: ModelFacts) -> dict[str, float]:
    found = {
        "parameters": model.parameters,
        "sizeBytes": model.size_bytes,
        "examplesPerSecond": model.examples_per_second,
        "latencyP50Ms": model.latency_p50_ms,
        "latencyP95Ms": model.latency_p95_ms,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _named(series: str, values: Mapping[str, float] | None) -> dict[str, float]:
    return {f"{series}/{name}": value for name, value in (values or {}).items()}


def _measured_or_trained(rate: float | None) -> Callable[[HistoryPoint], Point]:
    def point(source: HistoryPoint) -> Point:
        if source.validation is not None:
            return Point(step=source.step, values=_named("validation", source.validation))
        known = {"loss": source.loss, "learningRate": source.learning_rate, "epoch": source.epoch}
        values = {**known, "examplesPerSecond": rate}
        return Point(step=source.step, values=_named("train", {k: v for k, v in values.items() if v is not None}))

    return point


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """`{"training": {"epochs": 2}}` as `training.epochs`, 2; a list as JSON."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(item, f"{path}.{name}" if path else name)
    elif isinstance(value, str | int | float | bool):
        yield path, value
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _read_state(folder: Path | None) -> TrackingState | None:
    path = folder / STATE_FILE if folder else None
    return TrackingState.parse(path.read_bytes()) if path and path.exists() else None
