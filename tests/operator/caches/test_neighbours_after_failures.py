"""A chain that fails to start, or whose look fails, holds no place and no stage that others could use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chain_builders import own_store
from distillchain_api.graph import Plan
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches import recent_plans
from distillchain_operator.chain_key import ChainKey
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
async def test_a_chain_whose_job_may_exist_is_the_only_one_until_an_answer_says_so(shares: bool):
    namespace = Namespace(limit=0 if shares else 1)
    storage = {"storage": own_store("shared")} if shares else {}
    namespace.apply("x", **storage)
    namespace.servers["x"].refusal = NO_ANSWER
    await namespace.try_all()
    namespace.apply("y", second=1, **storage)
    await namespace.try_all()
    assert namespace.created == []
    namespace.servers["x"].refusal = QUOTA
    await namespace.pass_backoffs()
    assert namespace.created == ["y/mini"]


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


async def two_chains_of_one_stage() -> Namespace:
    """The first trains it, the second waits."""
    namespace = Namespace()
    for second, name in enumerate(("first", "second")):
        namespace.apply(name, second=second, storage=own_store("shared"))
        await namespace.settle()
    return namespace


def refuse_jobs(namespace: Namespace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, no look at this chain succeeds."""

    async def refuse(*_: Any, **__: Any) -> Any:
        raise ApiError(403, "jobs is forbidden")

    monkeypatch.setattr(namespace.servers[name], "list_jobs", refuse)
    namespace.report(name)


async def test_a_look_that_fails_gives_no_stage_away_that_is_trained(monkeypatch: pytest.MonkeyPatch):
    namespace = await two_chains_of_one_stage()
    namespace.run_pod("first")
    await namespace.settle()
    refuse_jobs(namespace, "first", monkeypatch)
    await namespace.try_all()
    assert namespace.running() == ["first"]


async def test_a_stage_whose_job_has_ended_is_free_although_all_looks_at_its_chain_fail(
    monkeypatch: pytest.MonkeyPatch,
):
    namespace = await two_chains_of_one_stage()
    namespace.fail("first")
    namespace.fill_cache(version=2)  # the watch has seen the end of the Job

    def fail(plan: Plan) -> None:
        if plan.chain.name == "first":
            raise ValueError("a mistake of the operator")

    monkeypatch.setattr(recent_plans, "check_plan", fail)
    await namespace.try_all()
    assert namespace.running() == ["second"]


async def look_at_eight_at_once(namespace: Namespace) -> int:
    """Looks at all chains that have news, eight at the same time. Returns: how many looks that took."""
    looks, busy = 0, set[ChainKey]()

    async def work() -> None:
        nonlocal looks
        while namespace.news or busy:
            key = next((key for key in namespace.news if key not in busy), None)
            if key is None:
                await asyncio.sleep(0)
                continue
            namespace.news.remove(key)
            busy.add(key)
            looks += 1
            assert looks < 2000, "the operator looks for ever"
            await namespace.controller.reconcile(key)
            busy.discard(key)

    await asyncio.gather(*(work() for _ in range(8)))
    return looks


@pytest.mark.parametrize("refusal", [QUOTA, ApiError(403, "violates PodSecurity")], ids=["a quota", "a policy"])
async def test_chains_that_are_refused_take_turns_without_a_write(refusal: ApiError, monkeypatch: pytest.MonkeyPatch):
    namespace, names = Namespace(limit=1), [f"c{number:02d}" for number in range(20)]

    async def slowly(_: dict[str, Any]) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        raise refusal

    for second, name in enumerate(names):
        namespace.apply(name, second=second)
        monkeypatch.setattr(namespace.servers[name], "dry_run_pod", slowly)
    await look_at_eight_at_once(namespace)
    writes = [len(server.statuses) for server in namespace.servers.values()]
    namespace.clock.now_s += 31
    for name in names:
        namespace.report(name)
    looks = await look_at_eight_at_once(namespace)
    assert [len(server.statuses) for server in namespace.servers.values()] == writes
    # Each is looked at when it is due, and again if another one had the turn then.
    assert looks <= 2 * len(names)
    assert all(refusal.message in namespace.status(name)["message"] for name in names)


async def test_chains_of_a_namespace_that_can_be_read_again_are_listed_before_one_starts(
    monkeypatch: pytest.MonkeyPatch,
):
    namespace = Namespace(limit=1)
    for second, name in enumerate(("b", "a")):
        namespace.apply(name, second=second)
        await namespace.settle()
    namespace.start_operator()
    await namespace.settle()

    async def refuse(*_: Any) -> Any:
        raise ApiError(403, "chains are forbidden")

    with monkeypatch.context() as without_role:
        without_role.setattr(namespace, "get_chain", refuse)
        for name in ("b", "a"):
            namespace.report(name)
        await namespace.settle()
    for name in ("a", "b"):
        namespace.report(name)
    await namespace.settle()
    assert namespace.running() == ["b"]
    assert namespace.lists == 2


async def test_a_chain_whose_deletion_was_not_reported_holds_no_stage():
    namespace = await two_chains_of_one_stage()
    del namespace.servers["first"]
    namespace.neighbours.check({ChainKey("ml", "second")})
    await namespace.settle()
    assert namespace.running() == ["second"]


async def test_a_chain_that_cannot_be_read_after_a_start_of_the_operator_holds_no_place(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
):
    namespace.apply("x")
    await namespace.settle()
    namespace.fail("x")
    await namespace.settle()
    namespace.apply("y", second=1)
    namespace.start_operator()
    read = namespace.get_chain

    async def read_others(where: str, name: str) -> Any:
        if name == "x":
            raise ValueError("of a later release")
        return await read(where, name)

    monkeypatch.setattr(namespace, "get_chain", read_others)
    await namespace.try_all()
    assert namespace.running() == ["y"]


async def a_place_that_no_status_has_given_up(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chain x was suspended between two stages, and y has started in its place. The status of x still says Running."""
    for second, name in enumerate(("x", "y", "z")):
        namespace.apply(name, second=second)
        await namespace.settle()
    namespace.commit("x")
    namespace.apply("x", suspend=True)

    async def conflict(*_: Any, **__: Any) -> Any:
        raise ApiError(409, "the object has been modified")

    with monkeypatch.context() as edited_meanwhile:
        edited_meanwhile.setattr(namespace.servers["x"], "patch_status", conflict)
        await namespace.try_all()
    assert (namespace.running(), namespace.status("x")["phase"]) == (["y"], "Running")
    namespace.apply("x")


async def test_a_place_that_was_given_up_is_asked_for_again_although_no_status_says_so(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
):
    await a_place_that_no_status_has_given_up(namespace, monkeypatch)
    await namespace.settle()
    assert namespace.running() == ["y"]
    assert namespace.stage("x", "tiny")["admission"] == "WaitingForTurn"
    namespace.delete("y")
    await namespace.settle()
    assert namespace.running() == ["x"]


@pytest.mark.parametrize("cached", [False, True])
async def test_a_place_that_was_given_up_stays_given_up_after_a_restart_although_no_status_says_so(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch, cached: bool
):
    await a_place_that_no_status_has_given_up(namespace, monkeypatch)
    namespace.cache_jobs = cached
    namespace.start_operator()  # it looks at x first
    await namespace.settle()
    assert (namespace.running(), namespace.waiting()) == (["y"], ["x", "z"])


async def test_a_place_is_not_taken_back_from_a_chain_whose_spec_is_invalid(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
):
    await a_place_that_no_status_has_given_up(namespace, monkeypatch)
    namespace.apply("y", stages=["mini", "mini"])
    namespace.start_operator()
    namespace.news.rotate(-1)  # it looks at y first
    await namespace.settle()
    assert namespace.running() == ["y"]


async def test_a_look_that_fails_takes_no_place_back_that_was_given_up(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
):
    await a_place_that_no_status_has_given_up(namespace, monkeypatch)
    namespace.fill_cache(version=2)

    def fail(plan: Plan) -> None:
        if plan.chain.name == "x":
            raise ValueError("a mistake of the operator")

    monkeypatch.setattr(recent_plans, "check_plan", fail)
    await namespace.try_all()
    namespace.delete("y")
    await namespace.try_all()
    assert namespace.running() == ["z"]
