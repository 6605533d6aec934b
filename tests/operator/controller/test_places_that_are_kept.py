"""A chain keeps its place, and the stage that it shares, while a Job of it may run, and no longer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import many_chains
from chain_builders import own_store
from distillchain_operator.api_server.cluster import ApiError
from many_chains import Namespace, a_full_namespace, trainer


async def test_a_chain_whose_job_was_deleted_keeps_its_turn_until_the_job_is_gone_and_then_starts_again():
    namespace = await a_full_namespace("first", "next", limit=1)
    (job,) = namespace.servers["first"].jobs
    # With propagation in the foreground, as `kubectl delete --cascade=foreground`; its pod is not known yet.
    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:05:00Z"
    namespace.report("first")
    await namespace.settle()
    assert namespace.created == ["first/mini"]
    namespace.servers["first"].jobs.clear()
    namespace.report("first")
    await namespace.settle()
    assert namespace.created == ["first/mini", "first/mini"]


async def test_a_suspended_chain_whose_job_is_deleted_does_not_take_its_place_back():
    namespace = await a_full_namespace("first", "next", limit=1)
    namespace.commit("first")
    await namespace.settle()
    namespace.run_pod("first")
    namespace.apply("first", suspend=True)
    await namespace.settle()
    namespace.interrupt("first")
    await namespace.settle()
    created = ["first/mini", "first/tiny", "next/mini"]
    assert namespace.created == created
    namespace.servers["first"].jobs[-1]["metadata"]["deletionTimestamp"] = "2026-01-01T12:05:00Z"
    namespace.apply("first")
    await namespace.settle()
    namespace.servers["first"].jobs.pop()
    namespace.report("first")
    await namespace.settle()
    assert namespace.created == created


def refuse_deletion(namespace: Namespace) -> None:
    """The edit asks for another Job, and the API server does not let the operator delete the one that there is."""
    namespace.servers["first"].change_refusal = ApiError(403, "a webhook denies the deletion")
    namespace.apply("first", template={"image": "trainer:of-the-edit"})


def make_invalid(namespace: Namespace) -> None:
    namespace.apply("first", stages=["mini", "mini"])


@pytest.mark.parametrize(
    "stall",
    [
        pytest.param(refuse_deletion, id="its Job cannot be deleted"),
        pytest.param(make_invalid, id="its spec is invalid"),
    ],
)
async def test_a_chain_that_stalls_keeps_its_place_while_its_job_may_still_run(stall: Any):
    namespace = await a_full_namespace("first", "next", limit=1)
    stall(namespace)
    await namespace.settle()
    stalled = {each["type"]: each["status"] for each in namespace.status("first")["conditions"]}["Stalled"]
    assert (stalled, namespace.created) == ("True", ["first/mini"])
    namespace.servers["first"].change_refusal = None
    namespace.apply("first", suspend=True)
    await namespace.pass_backoffs()
    assert namespace.created == ["first/mini", "next/mini"]


@pytest.mark.parametrize("shares", [False, True], ids=["the place", "the stage"])
async def test_after_a_restart_a_chain_whose_job_runs_keeps_it_although_all_looks_at_the_chain_fail(
    shares: bool, monkeypatch: pytest.MonkeyPatch
):
    namespace = Namespace(limit=0 if shares else 1)
    for second, name in enumerate(("first", "second")):
        namespace.apply(name, second=second, storage=own_store("shared" if shares else name))
        await namespace.settle()
    namespace.run_pod("first")
    await namespace.settle()
    namespace.start_operator()

    async def refuse(*_: Any) -> Any:
        raise ApiError(403, "pods is forbidden")

    monkeypatch.setattr(namespace.servers["first"], "list_pods", refuse)
    await namespace.try_all()
    assert namespace.created == ["first/mini"]


async def test_a_stage_whose_time_is_over_is_given_away_when_its_pod_has_stopped(monkeypatch: pytest.MonkeyPatch):
    namespace = Namespace()
    namespace.apply("first", storage=own_store("shared"), timeout="1h")
    namespace.apply("second", second=1, storage=own_store("shared"))
    await namespace.settle()
    pod = namespace.run_pod("first")
    pod["status"]["containerStatuses"] = [trainer(running={"startedAt": "2026-01-01T12:00:00Z"})]

    async def delete_in_the_foreground(_namespace: str, name: str, *, uid: str) -> None:
        (job,) = namespace.servers["first"].jobs
        for document in (job, pod):
            document["metadata"]["deletionTimestamp"] = "2026-01-01T14:00:30Z"
        namespace.report("first")

    await namespace.settle()
    monkeypatch.setattr(many_chains, "NOON", many_chains.NOON + timedelta(hours=2))
    monkeypatch.setattr(namespace, "delete_job", delete_in_the_foreground)
    namespace.report("first")
    await namespace.settle()
    assert (namespace.status("first")["phase"], namespace.created) == ("Failed", ["first/mini"])

    namespace.servers["first"].jobs.clear()
    namespace.servers["first"].pods.clear()
    namespace.report("first")
    await namespace.settle()
    assert namespace.created == ["first/mini", "second/mini"]
