"""A chain as the API server holds it: what several commands ask of it. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from distillchain_api.resource.spec import TEACHER_STAGE
from distillchain_api.resource.status import ChainStatus, Condition
from distillchain_cli.errors import RunFailed


def status_of(chain: dict[str, Any]) -> ChainStatus:
    """What the operator has said of a chain. Raises: RunFailed when it is of another release."""
    try:
        return ChainStatus.model_validate_json(json.dumps(chain.get("status") or {}))
    except ValidationError as error:
        raise RunFailed("the status is of another release than this command; use -o json to see it") from error


def metric_name(chain: dict[str, Any]) -> str:
    """`spec.task.metric`."""
    return str(chain["spec"]["task"].get("metric", "accuracy"))


def stage_names(chain: dict[str, Any]) -> list[str]:
    """Names of its stages in order, stage zero included."""
    first = [TEACHER_STAGE] if chain["spec"]["teacher"].get("fineTune") is not None else []
    return [*first, *(stage["name"] for stage in chain["spec"]["stages"])]


def full_name(chain: dict[str, Any]) -> str:
    """`namespace/name`."""
    return f"{chain['metadata']['namespace']}/{chain['metadata']['name']}"


def condition(status: ChainStatus, kind: str) -> Condition | None:
    """A condition, when it is true."""
    return next((c for c in status.conditions if c.type == kind and c.status == "True"), None)


def behind(chain: dict[str, Any], status: ChainStatus) -> str:
    """A warning when the operator has not seen the last edit; else empty."""
    generation = chain["metadata"].get("generation", 0)
    if status.observed_generation >= generation:
        return ""
    if status.observed_generation < 1:
        return "the operator has not looked at it yet; does it run, and does it watch this namespace?"
    return f"generation {generation} is not looked at yet; this status is of generation {status.observed_generation}"


def seconds_since(timestamp: str | None, now: datetime) -> float | None:
    """Seconds from an RFC 3339 timestamp to `now`, never below 0: two clocks need not agree."""
    if not timestamp:
        return None
    return max(0.0, (now - datetime.fromisoformat(timestamp).astimezone(UTC)).total_seconds())
