"""Weights & Biases: one run for each stage, with an id that the trainer chooses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import wandb

from distillchain_api.resource.tracking import Wandb
from distillchain_trainer.tracking.messages import Outcome, Point, Start

INIT_S = 20.0  # the client itself waits for 90 s, longer than the trainer does at its end
STEP = "step"


class WandbTracker:
    """Logs by the client, which uploads in a process of its own."""

    def __init__(self, spec: Wandb, *, folder: Path) -> None:
        self._spec, self._folder = spec, folder
        self._run: wandb.Run | None = None
        self._last_steps: dict[str, int] = {}

    def start(self, start: Start) -> None:
        """See Tracker."""
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            # By default it writes into the working directory and the home of the user.
            os.environ.setdefault(name, str(self._folder))
        self._run = wandb.init(
            project=self._spec.project,
            entity=self._spec.entity,
            id=start.run,
            resume="allow",
            name=start.name,
            group=start.chain,
            job_type=start.stage,
            config={**start.parameters, "lineage": start.lineage, "digest": start.digest, "attempt": start.attempt},
            settings=wandb.Settings(
                **({"base_url": self._spec.base_url} if self._spec.base_url else {}),
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                init_timeout=INIT_S,
            ),
        )
        if start.resumed_at is not None:
            summary = dict(self._run.summary)
            axes = {name: value for name, value in summary.items() if name.endswith(f"/{STEP}")}
            self._last_steps = {name.removesuffix(f"/{STEP}"): int(value) for name, value in axes.items()}

    def log(self, point: Point) -> None:
        """See Tracker."""
        assert self._run is not None
        step, series = point.step, point.series
        if step <= self._last_steps.get(series, -1):
            return
        # A step of our own for each series: the client's own step only grows, so it would refuse a measurement at the
        # step that a resumed run starts from.
        axis = f"{series}/{STEP}"
        if series not in self._last_steps:
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{series}/*", step_metric=axis)
        self._last_steps[series] = step
        self._run.log({**point.values, axis: step})

    def flush(self) -> None:
        """See Tracker. The client writes to disk and uploads by itself."""

    def end(self, outcome: Outcome, facts: Mapping[str, str]) -> None:
        """See Tracker."""
        assert self._run is not None
        self._run.summary.update(dict(facts))
        if outcome == "interrupted":
            # Shown as preempted and not as crashed: the next attempt continues the run.
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == "committed" else 1)
