"""The limit of running chains in a namespace: who runs, who waits, in which order, and what status says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chain_builders import IMAGE, a_document
from distillchain_api.retry_request import new_retry
from distillchain_operator.api_server.cluster import ApiError
from distillchain_operator.caches.children import Kind
from distillchain_operator.caches.neighbours import Neighbours
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.turns import Turn
from distillchain_operator.metrics.operator_metrics import Metrics
from distillchain_operator.status.stored import parse_status
from many_chains import Namespace, a_full_namespace, reason_of


async def test_chains_beyond_the_limit_wait_and_their_status_says_why():
    namespace = await a_full_namespace("a", "b", "c", limit=1)
    assert namespace.running() == ["a"]
    status = namespace.status("c")
    assert status["phase"] == "Pending"
    assert status["message"] == (
        "mini: waiting for its turn: 1 chain runs at a time in namespace ml (maxRunningChains), oldest first"
    )
    assert namespace.stage("c", "mini")["admission"] == reason_of(status) == "WaitingForTurn"
    assert namespace.servers["c"].events == ["WaitingForTurn"]
    conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
    assert (conditions["Reconciling"], conditions["Stalled"]) == ("True", "False")


async def test_without_a_limit_nobody_waits_and_no_chain_is_listed():
    namespace = await a_full_namespace("a", "b", "c", limit=0)
    assert namespace.running() == ["a", "b", "c"]
    assert namespace.lists == 0


async def test_the_next_in_line_is_the_oldest_then_the_first_by_name():
    namespace = await a_full_namespace("running", limit=1)
    for name, second in [("late", 9), ("b", 5), ("a", 5)]:
        namespace.apply(name, second=second)
    await namespace.settle()
    for name in ("running", "a", "b"):
        namespace.delete(name)
        await namespace.settle()
    assert namespace.created == ["running/mini", "a/mini", "b/mini", "late/mini"]


async def test_a_chain_keeps_its_turn_between_two_stages_and_gives_it_up_at_its_end():
    namespace = await a_full_namespace("b", "a", limit=1)
    for _ in range(2):
        namespace.commit("b")
        await namespace.settle()
    assert namespace.status("b")["phase"] == "Succeeded"
    assert namespace.created == ["b/mini", "b/tiny", "a/mini"]
    assert namespace.servers["a"].events == ["WaitingForTurn", "StageStarted"]


async def test_a_chain_whose_last_job_was_not_replaced_yet_keeps_its_turn_after_a_restart():
    namespace = await a_full_namespace("b", limit=1)
    namespace.apply("a", second=-1)
    await namespace.settle()
    namespace.commit("b")
    namespace.start_operator()
    namespace.news.rotate(1)  # the waiting chain is looked at first
    await namespace.settle()
    assert namespace.created == ["b/mini", "b/tiny"]


def suspend(namespace: Namespace) -> None:
    namespace.apply("first", suspend=True)


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(suspend, id="it is suspended"),
        pytest.param(lambda namespace: namespace.stall("first"), id="it stalls"),
        pytest.param(lambda namespace: namespace.fail("first"), id="it fails"),
        pytest.param(lambda namespace: namespace.delete("first"), id="it is deleted"),
    ],
)
async def test_the_next_chain_starts_when(leave: Any):
    namespace = await a_full_namespace("first", "next", "last", limit=1)
    leave(namespace)
    await namespace.settle()
    assert namespace.created == ["first/mini", "next/mini"]
    assert namespace.stage("last", "mini")["admission"] == "WaitingForTurn"


async def test_a_suspended_chain_whose_pod_saves_its_state_still_runs():
    namespace = await a_full_namespace("first", "next", limit=1)
    namespace.run_pod("first")
    namespace.apply("first", suspend=True)
    await namespace.settle()
    assert namespace.created == ["first/mini"]
    namespace.interrupt("first")
    await namespace.settle()
    assert namespace.created == ["first/mini", "next/mini"]


async def test_a_chain_that_is_resumed_waits_for_its_turn_and_its_time_begins_with_it():
    namespace = await a_full_namespace("first", "next", limit=1)
    namespace.run_pod("first")
    namespace.apply("first", suspend=True)
    await namespace.settle()
    namespace.interrupt("first")
    await namespace.settle()
    namespace.apply("first")
    await namespace.settle()
    assert namespace.running() == ["next"]
    assert (namespace.status("first")["phase"], reason_of(namespace.status("first"))) == ("Pending", "WaitingForTurn")
    assert "startedAt" not in namespace.status("first")
    namespace.delete("next")
    await namespace.settle()
    assert namespace.running() == ["first"]
    assert namespace.status("first")["phase"] == "Running"


async def test_a_retry_of_a_failed_chain_waits_for_its_turn():
    namespace = await a_full_namespace("first", "next", limit=1)
    namespace.fail("first")
    await namespace.settle()
    namespace.annotate("first", new_retry(["mini"], token="1"))
    await namespace.settle()
    assert (namespace.running(), namespace.waiting()) == (["next"], ["first"])
    namespace.delete("next")
    await namespace.settle()
    assert namespace.running() == ["first"]


async def test_a_retry_of_a_later_stage_waits_for_its_turn_too():
    namespace = await a_full_namespace("first", "next", limit=1)
    namespace.commit("first")
    await namespace.settle()
    namespace.fail("first")
    await namespace.settle()
    namespace.annotate("first", new_retry(["tiny"], token="1"))
    await namespace.settle()
    assert (namespace.running(), namespace.waiting()) == (["next"], ["first"])


async def test_an_edit_of_a_chain_that_has_succeeded_waits_for_its_turn():
    namespace = await a_full_namespace("first", "next", limit=1, stages=["mini"])
    namespace.commit("first")
    await namespace.settle()
    namespace.apply("first", stages=["mini", "femto"])
    await namespace.settle()
    assert (namespace.running(), namespace.waiting()) == (["next"], ["first"])
    status = namespace.status("first")
    assert (status["phase"], status["stage"]) == ("Pending", "1/2")


async def test_an_edit_of_a_running_chain_keeps_its_turn():
    namespace = await a_full_namespace("first", "next", limit=1)
    namespace.apply("first", stages=["other"])
    await namespace.settle()
    assert namespace.created == ["first/mini", "first/other"]


async def test_of_two_chains_that_are_looked_at_at_the_same_time_one_starts(monkeypatch: pytest.MonkeyPatch):
    namespace = Namespace(limit=1)
    for name in ("a", "b"):
        namespace.apply(name)
        ready = namespace.servers[name].dry_run_pod

        async def slowly(pod: dict[str, Any], ready: Any = ready) -> None:
            await asyncio.sleep(0)
            await ready(pod)

        monkeypatch.setattr(namespace.servers[name], "dry_run_pod", slowly)
    await asyncio.gather(*(namespace.controller.reconcile(ChainKey("ml", name)) for name in ("a", "b")))
    assert namespace.created == ["a/mini"]


async def test_a_lower_limit_stops_no_running_chain():
    namespace = await a_full_namespace("a", "b", "c", limit=2)
    namespace._limit = 1
    namespace.start_operator()
    await namespace.settle()
    assert namespace.running() == ["a", "b"]
    namespace.delete("a")
    await namespace.settle()
    assert namespace.running() == ["b"]
    namespace.delete("b")
    await namespace.settle()
    assert namespace.running() == ["c"]


@pytest.mark.parametrize("rotation", range(4))
async def test_a_restart_starts_no_further_chain_whichever_is_looked_at_first(rotation: int):
    namespace = await a_full_namespace("b", "c", "a", "d", limit=2)
    namespace.servers["c"].chain.pop("status")  # the operator was killed after it had created the Job
    namespace.start_operator()
    namespace.news.rotate(rotation)
    before = {name: len(namespace.servers[name].statuses) for name in ("a", "d")}
    await namespace.settle()
    assert namespace.created == ["b/mini", "c/mini"]
    assert before == {name: len(namespace.servers[name].statuses) for name in ("a", "d")}
    assert namespace.lists == 1


async def test_a_chain_that_was_deleted_while_no_operator_ran_holds_no_place():
    namespace = await a_full_namespace("a", "b", limit=1)
    namespace.start_operator()
    namespace.neighbours.note_stored(namespace.servers["a"].chain)
    namespace.delete("a")
    namespace.news.clear()
    namespace.report("b")
    await namespace.settle()
    assert namespace.running() == []
    namespace.neighbours.check({ChainKey("ml", "b")})
    await namespace.settle()
    assert namespace.running() == ["b"]


async def test_a_chain_whose_job_is_refused_leaves_its_place_to_the_next():
    namespace = await a_full_namespace("first", limit=1)
    namespace.apply("refused", second=1)
    namespace.apply("next", second=2)
    namespace.servers["refused"].refusal = ApiError(403, "violates PodSecurity")
    await namespace.settle()
    namespace.delete("first")
    await namespace.settle()
    assert namespace.created == ["first/mini", "next/mini"]
    assert namespace.status("refused")["phase"] == "Failed"
    namespace.clock.now_s = 60
    namespace.report("refused")
    await namespace.settle()
    # What the user has to correct is still shown.
    assert "violates PodSecurity" in namespace.status("refused")["message"]
    namespace.servers["refused"].refusal = None
    namespace.delete("next")
    await namespace.settle()
    assert namespace.running() == ["refused"]


async def test_a_chain_whose_look_fails_does_not_delay_the_others(monkeypatch: pytest.MonkeyPatch):
    namespace = await a_full_namespace("a", "broken", "c", limit=1)

    async def unreadable(*_: Any, **__: Any) -> Any:
        raise ValueError("of a later release")

    monkeypatch.setattr(namespace.servers["broken"], "list_jobs", unreadable)
    namespace.delete("a")
    namespace.news.clear()
    namespace.report("broken")
    with pytest.raises(ValueError, match="later release"):
        await namespace.settle()
    namespace.report("a")
    await namespace.settle()
    assert namespace.running() == ["c"]


async def test_a_job_that_waits_in_a_queue_of_kueue_holds_no_place():
    namespace = await a_full_namespace("queued", limit=1, template={"image": IMAGE, "queueName": "gpus"})
    namespace.apply("next", second=1)
    await namespace.settle()
    assert namespace.created == ["queued/mini", "next/mini"]
    # Kueue decides: both run, and the next one waits until fewer do.
    namespace.servers["queued"].jobs[0]["spec"]["suspend"] = False
    namespace.report("queued")
    namespace.apply("last", second=2)
    await namespace.settle()
    assert namespace.running() == ["queued", "next"]


async def test_a_chain_whose_second_job_waits_in_a_queue_gives_up_its_place():
    namespace = await a_full_namespace("queued", limit=1, template={"image": IMAGE, "queueName": "gpus"})
    namespace.servers["queued"].jobs[0]["spec"]["suspend"] = False
    namespace.commit("queued")
    await namespace.settle()
    assert (namespace.status("queued")["phase"], namespace.running()) == ("Running", [])
    namespace.apply("next", second=1)
    await namespace.settle()
    assert namespace.running() == ["next"]


async def test_a_chain_that_has_succeeded_runs_until_its_controls_have_ended():
    namespace = await a_full_namespace("first", "next", limit=1, evidence={"controls": ["Direct"], "seeds": 2})
    for _ in ("mini", "tiny"):
        namespace.commit("first")
        await namespace.settle()
    assert namespace.status("first")["phase"] == "Succeeded"
    while namespace.running() == ["first"]:
        namespace.commit("first")
        await namespace.settle()
    assert len(namespace.created) == 7
    assert namespace.created[-2:] == ["first/evidence", "next/mini"]


async def test_a_start_writes_the_status_of_no_other_chain():
    names = [f"c{number:02d}" for number in range(40)]
    namespace = await a_full_namespace(*names, limit=1)
    writes = {name: len(server.statuses) for name, server in namespace.servers.items()}
    namespace.delete("c00")
    await namespace.settle()
    changed = [name for name in namespace.servers if len(namespace.servers[name].statuses) > writes[name]]
    assert changed == ["c01"]
    assert namespace.most_running == 1


async def test_a_waiting_chain_is_looked_at_without_a_read_or_a_write():
    namespace = await a_full_namespace("a", "b", limit=1)
    for kind in Kind:
        namespace.children.follow(kind, None, is_followed=True)
    reads, writes = namespace.reads, len(namespace.servers["b"].statuses)
    namespace.controller.chains.report(ChainKey("ml", "b"), None)
    assert await namespace.controller.reconcile(ChainKey("ml", "b")) is None
    assert (namespace.reads, len(namespace.servers["b"].statuses)) == (reads, writes)


async def test_waiting_chains_are_counted_and_are_not_pending_for_alerts():
    namespace = await a_full_namespace("a", "b", limit=1)
    metrics, key = Metrics(), ChainKey("ml", "b")
    metrics.reconciled(key, parse_status(namespace.servers["b"].chain, key))
    labels = {"namespace": "ml", "reason": "WaitingForTurn"}
    assert metrics.registry.get_sample_value("distillchain_chains_waiting", labels) == 1
    since = {"namespace": "ml", "chain": "b", "stage": "mini", "state": "waiting"}
    assert metrics.registry.get_sample_value("distillchain_stage_since_timestamp_seconds", since) is not None


async def test_a_chain_that_was_created_again_under_its_name_goes_to_the_end_of_the_line():
    namespace = await a_full_namespace("a", "b", "c", limit=1)
    del namespace.servers["b"]
    namespace.apply("b", second=9)
    await namespace.settle()
    namespace.delete("a")
    await namespace.settle()
    assert namespace.running() == ["c"]


def test_namespaces_do_not_wait_for_each_other():
    neighbours, document = Neighbours(1), a_document("b")
    neighbours.note(ChainKey("ml", "a"), "2026-01-01T12:00:00Z", Turn.RUNS)
    places = [neighbours.turn_of({"metadata": {**document["metadata"], "namespace": name}}) for name in ("ml", "nlp")]
    assert [place and place.is_free for place in places] == [False, True]
