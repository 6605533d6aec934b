"""Questions that several commands ask about a chain as the API server holds it. Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from distillchain_api import GROUP, KIND
from distillchain_api.resource.stage import TEACHER_STAGE
from distillchain_api.resource.status import ChainStatus, Condition
from distillchain_api.tasks import metrics_of
from distillchain_cli.errors import RunFailed


def status_of(chain: dict[str, Any]) -> ChainStatus:
    """The status that the operator wrote. Raises: RunFailed when another release wrote it."""
    try:
        # By way of JSON: in strict mode pydantic accepts enums and dates only from JSON.
        return ChainStatus.model_validate_json(json.dumps(chain.get("status") or {}))
    except ValidationError as error:
        raise RunFailed("another release of the operator wrote this status; use -o json to see it") from error


def metric_name(chain: dict[str, Any]) -> str:
    """`spec.task.metric`, or the default of the task's type; empty for a type that only another release knows."""
    task = chain["spec"]["task"]
    return str(task.get("metric") or next((metric.name for metric in metrics_of(task)), ""))


def stage_names(chain: dict[str, Any]) -> list[str]:
    """Names of the stages in order, including the stage that fine-tunes the teacher."""
    first = [TEACHER_STAGE] if chain["spec"]["teacher"].get("fineTune") is not None else []
    return [*first, *(stage["name"] for stage in chain["spec"]["stages"])]


def full_name(chain: dict[str, Any]) -> str:
    """`namespace/name`."""
    return f"{chain['metadata']['namespace']}/{chain['metadata']['name']}"


def resource_name(chain: dict[str, Any]) -> str:
    """`distillationchain.distillchain.io/sst2-femto`: the name that kubectl accepts."""
    return f"{KIND.lower()}.{GROUP}/{chain['metadata']['name']}"


def true_condition(status: ChainStatus, kind: str) -> Condition | None:
    """The condition of this type if it is true, else None."""
    return next((c for c in status.conditions if c.type == kind and c.status == "True"), None)


def outdated_status_warning(chain: dict[str, Any], status: ChainStatus) -> str:
    """A warning when the operator has not seen the latest edit; otherwise empty."""
    generation = chain["metadata"].get("generation", 0)
    if status.observed_generation >= generation:
        return ""
    if status.observed_generation < 1:
        return "the operator has not seen this chain yet; check that it runs and watches this namespace"
    return (
        f"the operator has not seen generation {generation} yet; this status is of generation "
        f"{status.observed_generation}"
    )


def seconds_since(timestamp: str | None, now: datetime) -> float | None:
    """Seconds from an RFC 3339 timestamp to `now`. Never below 0, because the clocks of two machines differ."""
    if not timestamp:
        return None
    return max(0.0, (now - datetime.fromisoformat(timestamp).astimezone(UTC)).total_seconds())
