"""Chains of one namespace that have the same stage: one trains it, the others wait, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import CHAIN_UID, IMAGE, a_job, a_plan, own_store, retrying
from distillchain_api.resource.status import ChainStatus
from distillchain_api.retry_request import new_retry
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches.children import Children
from distillchain_operator.caches.claims import KNOWN_COMMITS, Claims, Concerned, Shared
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.actions import CreateJob, DeleteJob, SetSuspend
from distillchain_operator.decide.peers import Claim, Peer, claims_of
from distillchain_operator.jobs.labels import DIGEST_LABEL, STAGE_LABEL
from distillchain_operator.jobs.observed import Observed
from distillchain_operator.jobs.parsing import observe
from many_chains import Namespace, is_active, reason_of

STORE = own_store("shared")
QUEUED = {"template": {"image": IMAGE, "queueName": "gpus"}}


async def chains_of_one_stage(*names: str, limit: int = 0, **spec: Any) -> Namespace:
    """Chains created in this order that share all stages."""
    namespace = Namespace(limit)
    for second, name in enumerate(names):
        namespace.apply(name, second=second, storage=STORE, **spec)
        await namespace.settle()
    return namespace


async def commit_all(namespace: Namespace) -> None:
    for _ in range(100):
        if not namespace.running():
            return
        namespace.commit(namespace.running()[0])
        await namespace.settle()
    raise AssertionError("the chains do not end")


async def test_the_second_chain_waits_for_the_first_and_adopts_its_commit():
    namespace = await chains_of_one_stage("first", "second")
    assert namespace.running() == ["first"]
    status = namespace.status("second")
    assert (status["phase"], reason_of(status)) == ("Pending", "WaitingForPeer")
    assert namespace.stage("second", "mini")["admission"] == "WaitingForPeer"
    assert status["message"] == ("mini: waiting for chain first, which runs the same stage (mini), to adopt its commit")
    assert namespace.servers["second"].events == ["WaitingForPeer"]

    namespace.commit("first")
    await namespace.settle()
    assert namespace.running() == ["first", "second"]
    namespace.commit("second", reused=True)
    await namespace.settle()
    assert namespace.stage("second", "mini")["reused"] is True
    # Between two stages a chain that has begun is running, also while it waits.
    assert (namespace.status("second")["phase"], reason_of(namespace.status("second"))) == ("Running", "WaitingForPeer")
    await commit_all(namespace)
    assert [namespace.status(name)["phase"] for name in ("first", "second")] == ["Succeeded", "Succeeded"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"storage": {**STORE, "uri": "s3://models/elsewhere"}}, id="another store"),
        pytest.param({"storage": {**STORE, "endpointUrl": "https://s3.example"}}, id="another endpoint"),
        pytest.param({"storage": STORE, "stages": ["other"]}, id="another stage"),
    ],
)
async def test_a_chain_with_another_stage_or_store_does_not_wait(other: dict[str, Any]):
    namespace = await chains_of_one_stage("first")
    namespace.apply("second", **other)
    await namespace.settle()
    assert namespace.running() == ["first", "second"]


async def test_a_slash_at_the_end_names_the_same_store():
    namespace = await chains_of_one_stage("first")
    namespace.apply("second", storage={**STORE, "uri": STORE["uri"] + "/"})
    await namespace.settle()
    assert namespace.waiting() == ["second"]


async def test_all_that_wait_adopt_a_commit_at_the_same_time():
    names = [f"c{number}" for number in range(5)]
    namespace = await chains_of_one_stage(*names, stages=["mini"])
    namespace.commit("c0")
    await namespace.settle()
    assert namespace.running() == names[1:]


def suspend(namespace: Namespace) -> None:
    namespace.apply("first", storage=STORE, suspend=True)


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(suspend, id="is suspended"),
        pytest.param(lambda namespace: namespace.stall("first"), id="stalls"),
        pytest.param(lambda namespace: namespace.fail("first"), id="fails"),
        pytest.param(lambda namespace: namespace.delete("first"), id="is deleted"),
        pytest.param(lambda namespace: namespace.apply("first", storage=STORE, stages=["other"]), id="is edited"),
    ],
)
async def test_the_next_chain_trains_the_stage_when_the_first(leave: Any):
    namespace = await chains_of_one_stage("first", "next", "last")
    leave(namespace)
    await namespace.settle()
    assert "next/mini" in namespace.created
    assert "last/mini" not in namespace.created
    assert "chain next" in namespace.status("last")["message"]


async def test_a_suspended_peer_is_waited_for_until_its_pod_has_saved_its_state():
    namespace = await chains_of_one_stage("first", "next")
    namespace.run_pod("first")
    namespace.apply("first", storage=STORE, suspend=True)
    await namespace.settle()
    assert namespace.created == ["first/mini"]
    namespace.interrupt("first")
    await namespace.settle()
    assert namespace.created == ["first/mini", "next/mini"]
    # The chain that is resumed waits in its turn: its Job is suspended, and the other one trains.
    namespace.apply("first", storage=STORE)
    await namespace.settle()
    assert namespace.running() == ["next"]
    assert namespace.waiting() == ["first"]


async def test_a_peer_whose_job_is_refused_yields():
    namespace = Namespace()
    namespace.apply("first", storage=STORE)
    namespace.servers["first"].refusal = ApiError(403, "violates PodSecurity")
    await namespace.settle()
    namespace.apply("second", storage=STORE)
    await namespace.settle()
    assert namespace.created == ["second/mini"]


async def test_a_peer_that_waits_for_its_turn_does_not_stop_the_chain_that_has_one():
    namespace = await chains_of_one_stage("first", limit=1)
    namespace.apply("second", second=1, storage=STORE, stages=["mini", "tiny", "femto"])
    namespace.apply("third", second=2)
    await namespace.settle()
    # A chain that waits for a peer is not in line.
    assert namespace.stage("third", "mini")["admission"] == "WaitingForTurn"
    namespace.apply("first", storage=STORE, suspend=True)
    await namespace.settle()
    namespace.apply("first", storage=STORE)
    await namespace.settle()
    # The chain that has a turn trains, though the other one is older.
    assert namespace.most_running == 1
    await commit_all(namespace)
    assert {namespace.status(name)["phase"] for name in namespace.servers} == {"Succeeded"}
    assert namespace.most_running == 1


async def test_two_chains_that_share_stages_and_controls_train_each_of_them_once():
    evidence = {"controls": ["Direct", "FromRoot"], "seeds": 2}
    namespace = await chains_of_one_stage("a", "b", evidence=evidence, maxParallelJobs=2)
    committed: set[str] = set()
    while active := [
        (name, job) for name in namespace.servers for job in namespace.servers[name].jobs if is_active(job)
    ]:
        stages = [
            job["metadata"]["labels"] for _, job in active if job["metadata"]["labels"][STAGE_LABEL] != "evidence"
        ]
        training = [labels[DIGEST_LABEL] for labels in stages if labels[DIGEST_LABEL] not in committed]
        assert len(training) == len(set(training)), "a stage is trained twice"
        name, job = active[0]
        digest = job["metadata"]["labels"][DIGEST_LABEL]
        namespace.commit_job(name, job, reused=digest in committed)
        committed.add(digest)
        await namespace.settle()
    for name in ("a", "b"):
        assert namespace.status(name)["phase"] == "Succeeded"
        entries = [*namespace.status(name)["stages"], *namespace.status(name)["evidence"]]
        assert {entry["phase"] for entry in entries} == {"Committed"}


async def test_a_peer_in_the_same_queue_is_waited_for_and_one_in_another_is_not():
    namespace = await chains_of_one_stage("first", "second", **QUEUED)
    namespace.apply("elsewhere", second=2, storage=STORE)
    await namespace.settle()
    assert namespace.created == ["first/mini", "elsewhere/mini"]
    assert "chain elsewhere, which runs" in namespace.status("second")["message"]
    # Kueue lets nobody run twice: the Job in the queue is deleted while another chain trains.
    assert namespace.servers["first"].jobs == []
    assert reason_of(namespace.status("first")) == "WaitingForPeer"
    namespace.commit("elsewhere")
    await namespace.settle()
    assert sorted(namespace.created[2:4]) == ["elsewhere/tiny", "first/mini"]


async def test_while_both_wait_in_one_queue_the_first_keeps_its_place():
    namespace = await chains_of_one_stage("first", "second", **QUEUED)
    assert namespace.created == ["first/mini"]
    assert namespace.status("second")["message"] == (
        "mini: waiting for chain first, which waits in queue gpus with the same stage (mini), to adopt its commit"
    )


@pytest.mark.parametrize("rotation", range(3))
async def test_a_restart_trains_no_stage_twice_whichever_chain_is_looked_at_first(rotation: int):
    namespace = await chains_of_one_stage("a", "b", "c")
    namespace.servers["a"].chain.pop("status")  # the operator was killed after it had created the Job
    namespace.cache_jobs = True
    namespace.start_operator()
    namespace.news.rotate(rotation)
    writes = len(namespace.servers["b"].statuses)
    await namespace.settle()
    assert namespace.created == ["a/mini"]
    assert len(namespace.servers["b"].statuses) == writes


async def test_a_restart_without_a_watch_trusts_what_status_says_of_the_peer():
    namespace = await chains_of_one_stage("a", "b")
    namespace.start_operator()
    namespace.news.rotate(1)
    await namespace.settle()
    assert namespace.created == ["a/mini"]


async def other_operator(namespace: Namespace, name: str) -> None:
    """A second operator that has seen no other chain creates the Job of this one."""
    mine, namespace.servers = namespace.servers, {name: namespace.servers[name]}
    namespace.start_operator(is_complete=True)
    await namespace.settle()
    namespace.servers = mine


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
async def test_of_two_jobs_of_two_operators_the_older_one_stays(order: tuple[str, str]):
    namespace = Namespace()
    for second, name in enumerate(("a", "b")):
        namespace.apply(name, second=second, storage=STORE)
    for name in order:
        await other_operator(namespace, name)
    assert sorted(namespace.running()) == ["a", "b"]
    namespace.start_operator(is_complete=True)
    await namespace.settle()
    assert namespace.running() == [order[0]]
    assert namespace.waiting() == [order[1]]


async def test_of_two_jobs_that_train_none_is_stopped():
    namespace = Namespace()
    for name in ("a", "b"):
        namespace.apply(name, storage=STORE)
    for name in ("a", "b"):
        await other_operator(namespace, name)
    for name in ("a", "b"):
        namespace.run_pod(name)
    namespace.start_operator(is_complete=True)
    await namespace.settle()
    assert namespace.running() == ["a", "b"]


async def test_a_stage_that_the_user_discards_is_trained_once_while_another_chain_waits():
    namespace = await chains_of_one_stage("first", "second", stages=["mini"])
    await commit_all(namespace)
    namespace.annotate("first", new_retry(["mini"], token="1", committed_too=True))
    await namespace.settle()
    assert namespace.running() == ["first"]
    # The commit that both had is discarded: a further chain waits for the next one.
    namespace.apply("third", second=5, storage=STORE, stages=["mini"])
    await namespace.settle()
    assert (namespace.running(), namespace.waiting()) == (["first"], ["third"])
    namespace.commit("first")
    await namespace.settle()
    assert namespace.running() == ["third"]


async def test_a_stage_that_is_discarded_in_both_chains_is_trained_by_one_of_them():
    namespace = await chains_of_one_stage("first", "second", stages=["mini"])
    await commit_all(namespace)
    for name in ("first", "second"):
        namespace.annotate(name, new_retry(["mini"], token="1", committed_too=True))
    await namespace.settle()
    assert (namespace.running(), namespace.waiting()) == (["first"], ["second"])
    namespace.commit("first")
    await namespace.settle()
    namespace.commit("second", reused=True)
    await namespace.settle()
    assert [namespace.status(name)["phase"] for name in ("first", "second")] == ["Succeeded", "Succeeded"]


def shared(digest: str) -> Shared:
    return Shared("ml", "", "s3://models", digest)


def test_of_several_peers_the_one_that_trains_is_named_then_the_oldest_job():
    claims, key = Claims(), ChainKey("ml", "asks")
    stage = shared("d" * 32)
    claims.note(ChainKey("ml", "queued"), "1", {stage: Claim("s", "1", "gpus")})
    claims.note(ChainKey("ml", "late"), "1", {stage: Claim("s", "3")})
    claims.note(ChainKey("ml", "early"), "2", {stage: Claim("s", "2")})
    assert claims.peers_of(key, "3", [stage]) == {stage.digest: Peer("early", Claim("s", "2"), is_older=True)}


def test_only_chains_that_share_a_stage_are_woken_and_not_the_chain_itself():
    claims = Claims(Children(FinishedChains()))
    stage, other = shared("a" * 32), shared("b" * 32)
    for name, asks in (("x", stage), ("y", stage), ("z", other)):
        claims.peers_of(ChainKey("ml", name), "1", [asks])
    x, y = ChainKey("ml", "x"), ChainKey("ml", "y")
    assert claims.note(x, "1", {stage: Claim("s")}) == [Concerned(y, may_start=False)]
    assert claims.note(x, "1", {stage: Claim("s", "since noon")}) == [Concerned(y, may_start=False)]
    assert claims.note(x, "1", {stage: Claim("s", "since noon")}) == []
    assert claims.forget(x) == [Concerned(y, may_start=True)]


def test_the_number_of_known_commits_is_bounded():
    claims = Claims()
    first, more = shared("first"), [shared(str(number)) for number in range(KNOWN_COMMITS)]
    key = ChainKey("ml", "x")
    claims.note(key, "1", {}, committed=[first, *more])
    claims.note(key, "1", {first: Claim("s"), more[0]: Claim("s")})
    assert set(claims.peers_of(ChainKey("ml", "y"), "1", [first, more[0]])) == {first.digest}


def test_a_job_claims_its_stage_as_soon_as_it_is_created_or_resumed():
    plan = retrying(a_plan(), "mini", committed_too=True)
    (digest,) = {job.digest for job in observe(chain_uid=CHAIN_UID, jobs=[a_job(plan, "mini")], pods=()).jobs}
    created = CreateJob("mini", a_job(plan, "mini"))
    assert claims_of(Observed(), ChainStatus(), [created]) == {digest: Claim("mini", is_again=True)}
    held = observe(chain_uid=CHAIN_UID, jobs=[a_job(plan, "mini", suspended=True)], pods=())
    (job,) = held.jobs
    assert claims_of(held, ChainStatus()) == {}
    claims = claims_of(held, ChainStatus(), [SetSuspend(job.name, job.uid, suspend=False)])
    assert claims == {digest: Claim("mini", job.created_at)}


@pytest.mark.parametrize("suspended", [False, True])
def test_a_job_claims_its_stage_until_it_is_gone_because_its_pod_may_not_be_known_yet(suspended: bool):
    job = a_job(a_plan(), "mini", suspended=suspended)
    before = observe(chain_uid=CHAIN_UID, jobs=[job], pods=())
    (found,) = before.jobs
    expected = {} if suspended else {found.digest: Claim("mini")}
    assert claims_of(before, ChainStatus(), [DeleteJob(found.name, found.uid, why="")]) == expected
    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:05:00Z"
    assert claims_of(observe(chain_uid=CHAIN_UID, jobs=[job], pods=()), ChainStatus()) == expected
