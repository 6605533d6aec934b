"""Logs of a chain whose committed stage is exported beside the stage that trains."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import CHAIN_UID, NOON, a_document, a_job, a_plan, a_pod
from deciding import committed_status
from distillchain_cli.errors import RunFailed
from distillchain_cli.status.logs import LogSelection, _next, _pods, _previous
from distillchain_operator.decide.late_exports import exporter_of
from distillchain_operator.jobs.stage_job import JobDefaults, build_job
from exporting import ONNX

TEMPLATE = {**ONNX, "resources": {"limits": {"nvidia.com/gpu": 1}}}


def a_chain(*committed: str) -> dict[str, Any]:
    document = a_document(template=TEMPLATE)
    document["metadata"] |= {"namespace": "ml", "uid": CHAIN_UID}
    document["status"] = committed_status(a_plan(template=TEMPLATE), *committed).to_document()
    return document


def pods(*, export_is_over: bool = False) -> list[dict[str, Any]]:
    """The trainer of tiny, and the export of mini that began with it."""
    plan = a_plan(template=TEMPLATE)
    export = build_job(plan.chain, exporter_of(plan, plan.stages[0]), defaults=JobDefaults())
    export["metadata"] |= {"uid": "export", "creationTimestamp": NOON}
    ended = {"phase": "Succeeded", "exit_code": 0} if export_is_over else {}
    return [a_pod(export, number=0, **ended), a_pod(a_job(plan, "tiny"), number=1)]


def followed(chain: dict[str, Any], documents: list[dict[str, Any]], **selection: Any) -> list[str]:
    """The stages in the order in which their logs are followed, each to its end."""
    shown: set[str] = set()
    found = []
    while pod := _next(documents, chain, LogSelection(**selection), shown):
        shown.add(pod.uid)
        found.append(pod.stage)
    return found


@pytest.mark.parametrize(
    "committed, over, selection, want",
    [
        pytest.param(["mini"], False, {}, ["tiny"], id="not before the trainer, which would wait for its end"),
        pytest.param(["mini"], True, {}, ["mini", "tiny"], id="when it has ended"),
        pytest.param(["mini", "tiny"], False, {}, ["mini", "tiny"], id="when nothing is left to train"),
        pytest.param(["mini"], False, {"stage": "mini"}, ["mini"], id="when its stage is asked for"),
    ],
)
def test_an_export_is_followed(committed: list[str], over: bool, selection: dict[str, Any], want: list[str]):
    assert followed(a_chain(*committed), pods(export_is_over=over), **selection) == want


def test_the_pod_before_the_newest_is_one_that_trained():
    chain, selection = a_chain("mini"), LogSelection(stage="mini")
    training = a_pod(a_job(a_plan(template=TEMPLATE), "mini"), number=2)

    with pytest.raises(RunFailed, match="stage mini of relay has no earlier pod"):
        _previous(_pods([*pods(), training], chain, selection), "relay", selection)
