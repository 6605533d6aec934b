"""MLflow: one run for each stage, found again by a tag."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from distillchain_api.resource.tracking import Mlflow
from distillchain_trainer.tracking.messages import Outcome, Point, Start

RUN_TAG = "distillchain.run"
STATUS: dict[Outcome, str] = {"committed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# What a server accepts: parameters of one request, the length of a value and of a tag, the characters of a key.
PARAMETERS = 100
VALUE_CHARS = 500
TAG_CHARS = 5000
NOT_IN_KEYS = re.compile(r"[^\w\-. :/]")
SEND_S = 2.0  # a short training has hundreds of points within seconds, and a request takes tens of milliseconds


class MlflowTracker:
    """Logs by a client of its own, not by MLflow's active run."""

    def __init__(self, spec: Mlflow) -> None:
        address = spec.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        # Without an address the client would write into a database in the working directory, which is lost.
        if not address:
            raise ValueError("there is no trackingUri, and MLFLOW_TRACKING_URI is not set")
        self._spec, self._client = spec, MlflowClient(tracking_uri=address)
        self._run = ""
        self._continues = False
        self._last_steps: dict[str, int] = {}  # by series
        self._unsent: list[Metric] = []
        self._sent_at = 0.0

    def start(self, start: Start) -> None:
        """See Tracker."""
        experiment = self._experiment(self._spec.experiment or start.chain)
        found: list[Run] = []
        if start.resumed_at is not None:
            found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{start.run}'", max_results=1)
        if found:
            self._run, self._continues = found[0].info.run_id, True
            self._client.update_run(self._run, status="RUNNING")
            self._client.set_tag(self._run, "distillchain.attempt", start.attempt)
            return
        facts = {"chain": start.chain, "stage": start.stage, "digest": start.digest, "attempt": start.attempt}
        lineage = {f"lineage.{name}": fact for name, fact in start.lineage.items()}
        tags = {RUN_TAG: start.run, **_tags({**facts, **lineage})}
        self._run = self._client.create_run(experiment, run_name=start.name, tags=tags).info.run_id
        parameters = [
            Param(NOT_IN_KEYS.sub("_", name), str(value)[:VALUE_CHARS]) for name, value in start.parameters.items()
        ]
        for first in range(0, len(parameters), PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + PARAMETERS])

    def log(self, point: Point) -> None:
        """See Tracker."""
        if point.step <= self._last_step(point.series, next(iter(point.values))):
            return
        now = time.time()
        self._unsent += [
            Metric(NOT_IN_KEYS.sub("_", name), value, int(1000 * now), point.step)
            for name, value in point.values.items()
        ]
        if now - self._sent_at >= SEND_S:
            self.flush()

    def flush(self) -> None:
        """See Tracker."""
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            self._client.log_batch(self._run, metrics=unsent)
            self._sent_at = time.time()

    def end(self, outcome: Outcome, facts: Mapping[str, str]) -> None:
        """See Tracker."""
        self.flush()
        tags = [RunTag(name, fact) for name, fact in _tags(facts).items()]
        self._client.log_batch(self._run, tags=tags)
        self._client.set_terminated(self._run, status=STATUS[outcome])

    def _experiment(self, name: str) -> str:
        for _ in range(2):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name))
            except MlflowException as error:
                # The trainer of another chain has created it at the same moment.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise ValueError(f"the experiment {name} was deleted; restore it, or set another name")

    def _last_step(self, series: str, metric: str) -> int:
        """The last step that the run has of a series, from an earlier attempt; -1: none."""
        if not self._continues:
            return -1
        if series not in self._last_steps:
            history = self._client.get_metric_history(self._run, metric)
            self._last_steps[series] = max((point.step for point in history), default=-1)
        return self._last_steps[series]


def _tags(facts: Mapping[str, str]) -> dict[str, str]:
    return {f"distillchain.{name}": fact[:TAG_CHARS] for name, fact in facts.items()}
