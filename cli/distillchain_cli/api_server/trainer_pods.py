"""A trainer's pod: the facts that commands on logs and status need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distillchain_api.wire.work_order import WORK_ORDER_ENV
from distillchain_operator.jobs.labels import STAGE_LABEL
from distillchain_operator.jobs.parsing import parse_pod


@dataclass(frozen=True)
class TrainerPod:
    """A pod of one stage."""

    name: str
    uid: str
    stage: str
    created_at: str
    has_log: bool
    """Its trainer runs or has ended."""
    is_over: bool
    is_leader: bool
    """It has node 0, whose log has the progress of the whole stage."""
    exports: bool
    """It exports a committed stage, beside the stage that trains."""


def parse_trainer_pod(document: dict[str, Any]) -> TrainerPod:
    """A pod from the API server's JSON."""
    pod = parse_pod(document)
    return TrainerPod(
        name=pod.name,
        uid=pod.uid,
        stage=(document["metadata"].get("labels") or {}).get(STAGE_LABEL, ""),
        created_at=pod.created_at,
        has_log=pod.running or pod.end is not None,
        is_over=pod.is_over or pod.end is not None,
        is_leader=pod.is_leader,
        exports=any(map(_is_export, (document.get("spec") or {}).get("containers", ()))),
    )


def _is_export(container: dict[str, Any]) -> bool:
    orders = [env["value"] for env in container.get("env") or () if env["name"] == WORK_ORDER_ENV and "value" in env]
    return any(json.loads(order).get("exportOnly", False) for order in orders)
