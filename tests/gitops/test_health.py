"""The Lua health check for Argo CD, run by Lua 5.1 as in Argo CD, on the operator's status of every phase."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from lupa.lua51 import LuaRuntime

from chain_builders import a_chain, a_commit
from distillchain_api.failures import FailureClass
from distillchain_api.graph import build_plan
from distillchain_api.resource.crd import UNSEEN_STATUS
from distillchain_api.resource.spec import parse_chain
from distillchain_api.resource.status import ChainPhase, ChainStatus, StageStatus
from distillchain_operator.status.chain_status import build_chain_status, invalid_status
from distillchain_operator.status.committed import committed_entry

EXAMPLES = Path(__file__).parents[2] / "examples" / "gitops"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CHECK = "resource.customizations.health.distillchain.io_DistillationChain"


def health(status: ChainStatus | dict[str, Any] | None, **metadata: Any) -> tuple[str, str]:
    """Health and message that Argo CD shows for a chain of generation 1."""
    lua = LuaRuntime(register_eval=False, register_builtins=False, unpack_returned_tuples=True)
    document = {"metadata": {"name": "relay", "generation": 1, **metadata}}
    if status is not None:
        document["status"] = status.to_document() if isinstance(status, ChainStatus) else status
    script = yaml.safe_load((EXAMPLES / "argocd" / "argocd-cm.yaml").read_text())["data"][CHECK]
    lua.globals().obj = lua.table_from(document, recursive=True)
    result = lua.execute(script)
    return result.status, result.message


def a_status(*, pods_run: bool = False, suspend: bool = False, **entry: Any) -> ChainStatus:
    """The status of a chain of two stages, with `entry` in the status of the first one."""
    plan = build_plan(a_chain(suspend=suspend))
    stages = [StageStatus(name=stage.name, phase="Pending", digest=stage.digest) for stage in plan.stages]
    stages[0] = stages[0].model_copy(update=entry)
    return build_chain_status(plan, stages, previous=ChainStatus(), now=NOON, pods_run=pods_run)


def succeeded() -> ChainStatus:
    plan = build_plan(a_chain())
    stages = [committed_entry(stage, a_commit(stage)) for stage in plan.stages]
    return build_chain_status(plan, stages, previous=ChainStatus(), now=NOON)


CASES: dict[str, tuple[ChainStatus, str, str]] = {
    "pending": (a_status(message="waiting for its pod"), "Progressing", "0/2 stages: mini: waiting for its pod"),
    "running": (a_status(phase="Running"), "Progressing", "0/2 stages: running mini"),
    "running, but its pod cannot pull its image": (
        a_status(phase="Running", failure_class=FailureClass.POD_REJECTED, message="ImagePullBackOff"),
        "Degraded",
        "PodRejected: 0/2 stages: mini: ImagePullBackOff",
    ),
    "suspended, but its pod still saves": (
        a_status(phase="Suspended", suspend=True, pods_run=True),
        "Progressing",
        "0/2 stages: stopping mini: its state is being saved",
    ),
    "suspended": (a_status(phase="Suspended", suspend=True), "Suspended", "0/2 stages: suspended by spec.suspend"),
    "succeeded": (succeeded(), "Healthy", "2/2 stages: tiny: accuracy 0.8500"),
    "failed": (
        a_status(phase="Failed", failure_class=FailureClass.GATE_NOT_MET, message="accuracy 0.612 is too low"),
        "Degraded",
        "GateNotMet: 0/2 stages: mini: accuracy 0.612 is too low",
    ),
    "invalid": (
        invalid_status(["spec.a: wrong"], generation=1, previous=ChainStatus(), now=NOON),
        "Degraded",
        "InvalidSpec: spec.a: wrong",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_argo_cd_shows_the_health_of_every_phase(name: str):
    status, want, want_message = CASES[name]
    result, message = health(status)
    assert result == want
    assert message.startswith(want_message)


def test_every_phase_has_a_case():
    assert {status.phase for status, _, _ in CASES.values()} == set(get_args(ChainPhase))


def test_a_new_an_edited_and_a_deleted_chain_are_progressing():
    assert health(None) == ("Progressing", "the operator has not looked at it yet")
    assert health(UNSEEN_STATUS) == ("Progressing", "the operator has not looked at it yet")
    assert health(succeeded(), generation=2) == ("Progressing", "the operator has not looked at the last edit yet")
    assert health(succeeded(), deletionTimestamp="2026-01-01T12:00:00Z") == (
        "Progressing",
        "its Jobs are being deleted",
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_every_example_is_yaml_and_its_chains_are_valid(path: Path):
    for document in yaml.safe_load_all(path.read_text()):
        assert document["apiVersion"]
        if document["kind"] == "DistillationChain":
            build_plan(parse_chain(document))
