"""With a limit of running chains, a chain keeps its place while a Job of it may run, and no longer."""

from __future__ import annotations

from typing import Any

import pytest

from distillchain_operator.cluster import ApiError
from many_chains import Namespace, a_full_namespace


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
