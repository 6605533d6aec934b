"""The Jobs that the spec asks for, or the reasons why none can be built. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from distillchain_api.graph import Plan, PlannedStage
from distillchain_operator.jobs.stage_job import JobDefaults, MissingImage, build_job


class WantedJob(NamedTuple):
    """The Job of a vertex."""

    manifest: dict[str, Any] | None = None
    name: str = ""
    fault: str = ""
    """Why there is no manifest."""


class WantedJobs:
    """The Jobs of a plan as the operator's defaults have them. Those of its vertices are built once."""

    def __init__(self, plan: Plan, defaults: JobDefaults) -> None:
        self._plan, self.defaults = plan, defaults
        self._built: dict[int, WantedJob] = {}  # by the identity of the vertex, which the plan keeps alive

    def of(self, stage: PlannedStage) -> WantedJob:
        """The Job of a vertex, or of one that was made from it, such as the exporter of a stage."""
        if id(stage) in self._built:
            return self._built[id(stage)]
        wanted = self._build(stage)
        if any(stage is vertex for vertex in self._plan.vertices):
            self._built[id(stage)] = wanted
        return wanted

    def _build(self, stage: PlannedStage) -> WantedJob:
        try:
            manifest = build_job(self._plan.chain, stage, defaults=self.defaults)
        except MissingImage as error:
            return WantedJob(fault=str(error))
        return WantedJob(manifest, manifest["metadata"]["name"])
