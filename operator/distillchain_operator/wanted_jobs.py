"""The Job that the spec asks for, or the reason why none can be built. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from distillchain_api.graph import PlannedStage
from distillchain_operator.jobs import MissingImage, build_job
from distillchain_operator.view import View


class WantedJob(NamedTuple):
    """The Job of a vertex."""

    manifest: dict[str, Any] | None = None
    name: str = ""
    fault: str = ""
    """Why there is no manifest."""


def wanted_job(view: View, stage: PlannedStage) -> WantedJob:
    """The Job of a vertex as the spec and the operator's defaults have it now."""
    try:
        manifest = build_job(view.plan.chain, stage, defaults=view.defaults)
    except MissingImage as error:
        return WantedJob(fault=str(error))
    return WantedJob(manifest, manifest["metadata"]["name"])
