"""A chain that fails to start, or whose look fails, holds no place and no stage that others could use."""

from __future__ import annotations

import pytest

from distillchain_operator.cluster import ApiError
from many_chains import Namespace

QUOTA = ApiError(403, "pods is forbidden: exceeded quota: gpus")
WEBHOOK = ApiError(500, "failed calling webhook: timeout")


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
