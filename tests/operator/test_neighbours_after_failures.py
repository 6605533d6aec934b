"""A chain that fails to start, or whose look fails, holds no place and no stage that others could use."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import own_store
from distillchain_operator.cluster import ApiError
from many_chains import Namespace

QUOTA = ApiError(403, "pods is forbidden: exceeded quota: gpus")
WEBHOOK = ApiError(500, "failed calling webhook: timeout")
NO_ANSWER = ApiError(0, "no answer")


@pytest.fixture
def namespace() -> Namespace:
    """One chain may run."""
    return Namespace(limit=1)


@pytest.mark.parametrize("refusal", [QUOTA, WEBHOOK], ids=["the quota is used up", "a webhook fails"])
async def test_a_chain_whose_job_is_not_accepted_yet_leaves_its_place_to_the_next(
    namespace: Namespace, refusal: ApiError
):
    namespace.apply("x")
    namespace.servers["x"].refusal = refusal
    await namespace.settle()
    namespace.apply("y", second=1)
    await namespace.settle()
    assert namespace.running() == ["y"]
    namespace.servers["x"].refusal = None
    await namespace.pass_backoffs()
    assert namespace.running() == ["y"]
    namespace.delete("y")
    await namespace.settle()
    assert namespace.running() == ["x"]


@pytest.mark.parametrize("shares", [False, True], ids=["waits for its turn", "has the same stage"])
async def test_a_chain_whose_look_fails_at_the_creation_of_its_job_holds_nothing(shares: bool):
    namespace = Namespace(limit=0 if shares else 1)
    storage = {"storage": own_store("shared")} if shares else {}
    namespace.apply("x", **storage)
    namespace.servers["x"].refusal = NO_ANSWER
    await namespace.try_all()
    namespace.apply("y", second=1, **storage)
    await namespace.try_all()
    assert namespace.running() == ["y"]


async def test_a_chain_whose_job_and_status_are_refused_holds_no_place(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
):
    namespace.apply("x")
    namespace.servers["x"].refusal = ApiError(403, "violates PodSecurity")

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ApiError(403, "a webhook denies the status")

    monkeypatch.setattr(namespace.servers["x"], "patch_status", refuse)
    await namespace.try_all()
    namespace.apply("y", second=1)
    await namespace.try_all()
    assert namespace.running() == ["y"]


async def test_a_chain_whose_status_is_not_written_after_its_job_was_created_holds_its_place(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
):
    namespace.apply("x")

    async def conflict(*_: Any, **__: Any) -> Any:
        raise ApiError(409, "the object has been modified")

    monkeypatch.setattr(namespace.servers["x"], "patch_status", conflict)
    namespace.apply("y", second=1)
    await namespace.try_all()
    assert namespace.running() == ["x"]
