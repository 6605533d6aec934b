"""Parts of the tests of exports: chains that have succeeded without one, and the Jobs that make them."""

from __future__ import annotations

import json
from typing import Any

from chain_builders import IMAGE, NOON, a_plan, a_pod
from deciding import committed_status
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Committed, ExportFailure
from distillchain_api.wire.export import ExportSummary
from distillchain_operator.decide.actions import CreateJob, Decision

ONNX = {"image": IMAGE, "export": {"onnx": {}}}
FAILURE = ExportFailure(failure_class=FailureClass.CHECKPOINT_INVALID, message="the graph computes something else")
EXPORTED = ExportSummary(
    format="onnx",
    uri="s3://models/model.onnx",
    size_bytes=9,
    metric="0.8500",
    examples_per_second="9.0",
    pytorch_examples_per_second="4.0",
)


def exports_ready(status: ChainStatus) -> Any:
    return next(condition for condition in status.conditions if condition.type == "ExportsReady")


def succeeded(*stages: str) -> tuple[Plan, ChainStatus]:
    """A chain that has succeeded without exports, and its plan after `export` was added to the template."""
    status = committed_status(a_plan(stages=stages), *stages)
    return a_plan(stages=stages, generation=2, template=ONNX), status


def export_job(decision: Decision) -> dict[str, Any]:
    """The Job of an export as the API server returns it."""
    (action,) = (action for action in decision.actions if isinstance(action, CreateJob))
    assert action.is_export
    job = action.job
    job["metadata"] |= {"uid": "uid-of-export", "creationTimestamp": NOON}
    return job | {"status": {"startTime": NOON}}


def ended(
    job: dict[str, Any], *, answer: Committed | None, condition: str = "Complete", exit_code: int = 0, **pod: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Job after its pod has ended."""
    end = {"type": condition, "status": "True", "lastTransitionTime": NOON}
    message = answer.to_json() if answer else ""
    phase = "Succeeded" if exit_code == 0 else "Failed"
    done = job | {"status": {"startTime": NOON, "conditions": [end], phase.lower(): 1}}
    return done, a_pod(job, phase=phase, exit_code=exit_code, message=message, **pod)


def order_of(job: dict[str, Any]) -> dict[str, Any]:
    (trainer,) = job["spec"]["template"]["spec"]["containers"]
    order: dict[str, Any] = next(
        json.loads(e["value"]) for e in trainer["env"] if e["name"] == "DISTILLCHAIN_WORK_ORDER"
    )
    return order
