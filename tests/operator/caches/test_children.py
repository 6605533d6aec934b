"""The cache of Jobs and pods: whatever the order of watches, live lists and own writes, it never gets older."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from chain_builders import a_job, a_plan, a_pod
from distillchain_operator.caches.children import Children, Kind, Listed
from distillchain_operator.caches.finished import FinishedChains
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.jobs.labels import CHAIN_LABEL
from distillchain_operator.jobs.observed import JobState

KEY, OTHER = ChainKey("ml", "relay"), ChainKey("ml", "other")
UID = "uid-of-the-chain"


def job(version: int, *, uid: str = "a", key: ChainKey = KEY, **more: Any) -> dict[str, Any]:
    document = a_job(a_plan(), "mini", **more)
    owner = [{"kind": "DistillationChain", "uid": UID, "controller": True}]
    document["metadata"] |= {"uid": uid, "resourceVersion": str(version), "namespace": key.namespace}
    document["metadata"] |= {
        "ownerReferences": owner,
        "labels": document["metadata"]["labels"] | {CHAIN_LABEL: key.name},
    }
    return document


@pytest.fixture
def finished() -> FinishedChains:
    return FinishedChains()


@pytest.fixture
def children(finished: FinishedChains) -> Children:
    known = Children(finished)
    for kind in Kind:
        known.follow(kind, None, is_followed=True)
    return known


def states(children: Children, key: ChainKey = KEY) -> dict[str, JobState] | None:
    observed = children.observed(key, UID)
    return None if observed is None else {job.uid: job.state for job in observed.jobs}


async def relist(children: Children, version: int, *documents: dict[str, Any], kind: Kind = Kind.JOBS) -> set[ChainKey]:
    async def pages() -> AsyncIterator[Listed]:
        yield Listed(version, list(documents[:1]))
        yield Listed(version, list(documents[1:]))

    _, changed = await children.relist(kind, None, pages())
    return changed


def load(children: Children, version: int, *jobs: dict[str, Any]) -> None:
    children.load(KEY, jobs=Listed(version, list(jobs)), pods=Listed(version, []))


def test_nothing_is_known_of_a_namespace_that_is_not_watched(finished: FinishedChains):
    children = Children(finished)
    assert states(children) is None
    for kind in Kind:
        children.follow(kind, "ml", is_followed=True)
    assert states(children) == {}
    assert states(children, ChainKey("elsewhere", "relay")) is None
    children.follow(Kind.PODS, "ml", is_followed=False)
    assert states(children) is None


def test_a_change_is_reported_only_if_a_decision_could_depend_on_it(children: Children):
    assert children.apply(Kind.JOBS, "ADDED", job(5)) == {KEY}
    touched = job(6)
    touched["metadata"]["managedFields"] = [{"manager": "kube-controller-manager"}]
    assert children.apply(Kind.JOBS, "MODIFIED", touched) == set()
    assert children.apply(Kind.JOBS, "MODIFIED", job(7, condition="Complete")) == {KEY}
    assert states(children) == {"a": JobState.SUCCEEDED}
    assert children.apply(Kind.JOBS, "DELETED", job(8)) == {KEY}
    assert states(children) == {}


def test_repeated_and_late_changes_bring_nothing_back(children: Children):
    children.apply(Kind.JOBS, "ADDED", job(5))
    load(children, 9)  # it was deleted at 8
    assert states(children) == {}
    for change, version in (("MODIFIED", 6), ("MODIFIED", 7), ("DELETED", 8)):
        assert children.apply(Kind.JOBS, change, job(version)) == set()
        assert states(children) == {}
    assert children.apply(Kind.JOBS, "ADDED", job(10, uid="b")) == {KEY}


def test_a_live_list_that_is_older_than_the_watch_changes_nothing(children: Children):
    children.apply(Kind.JOBS, "ADDED", job(5))
    children.apply(Kind.JOBS, "DELETED", job(8))
    load(children, 7, job(5))
    assert states(children) == {}


async def test_what_is_older_than_a_list_without_the_chain_brings_no_deleted_job_back(children: Children):
    await relist(children, 8)
    load(children, 7, job(5))
    assert states(children) == {}
    assert children.job_written(job(6)) is None
    assert states(children) == {}


def test_the_answer_to_an_own_write_is_known_at_once_unless_the_watch_is_further(children: Children):
    children.job_written(job(5))
    assert states(children) == {"a": JobState.ACTIVE}
    assert children.apply(Kind.JOBS, "ADDED", job(5)) == {KEY}  # a look, because a group now needs its Service
    children.apply(Kind.JOBS, "DELETED", job(9))
    children.job_written(job(7))
    assert states(children) == {}


async def test_a_list_after_lost_events_reports_the_chains_that_have_changed(children: Children):
    children.apply(Kind.JOBS, "ADDED", job(5))
    children.apply(Kind.JOBS, "ADDED", job(6, uid="b", key=OTHER))
    third = ChainKey("ml", "third")
    added = job(8, uid="c", key=third)
    assert await relist(children, 9, job(5), added) == {OTHER, third}
    assert (states(children), states(children, OTHER)) == ({"a": JobState.ACTIVE}, {})
    assert await relist(children, 9, job(5), added) == set()


async def test_a_list_that_began_before_a_live_read_of_a_chain_does_not_undo_it(children: Children):
    load(children, 9, job(8))
    assert await relist(children, 7) == set()
    assert states(children) == {"a": JobState.ACTIVE}


async def test_after_etcd_was_restored_from_a_backup_the_list_counts(children: Children):
    await relist(children, 100)
    children.apply(Kind.JOBS, "ADDED", job(105))
    await relist(children, 50, job(40, uid="b"))
    assert states(children) == {"b": JobState.ACTIVE}
    assert children.apply(Kind.JOBS, "DELETED", job(51, uid="b")) == {KEY}


async def test_of_a_finished_chain_nothing_is_kept_and_only_a_job_that_may_run_is_reported(
    children: Children, finished: FinishedChains
):
    children.apply(Kind.JOBS, "ADDED", job(5, condition="Complete"))
    finished.note({"metadata": {"namespace": "ml", "name": "relay", "uid": UID, "generation": 1}})
    assert states(children) == {"a": JobState.SUCCEEDED}
    children.prune({KEY})
    assert states(children) is None
    assert await relist(children, 6, job(5, condition="Complete")) == set()
    assert children.apply(Kind.JOBS, "DELETED", job(7, condition="Complete")) == set()
    assert children.apply(Kind.JOBS, "ADDED", job(8, uid="b")) == {KEY}
    assert await relist(children, 9, job(8, uid="b")) == {KEY}
    load(children, 10, job(8, uid="b"))
    assert states(children) is None
    finished.forget(KEY)  # it was edited
    assert states(children) is None
    children.apply(Kind.JOBS, "DELETED", job(12, uid="b"))
    load(children, 11, job(8, uid="b"))
    assert states(children) is None, "the list was older than the watch"
    load(children, 13)
    assert states(children) == {}


async def test_of_a_finished_chain_whose_jobs_expire_an_ended_job_without_a_ttl_is_reported(
    children: Children, finished: FinishedChains
):
    metadata = {"namespace": "ml", "name": "relay", "uid": UID, "generation": 1}
    finished.note({"metadata": metadata, "spec": {"template": {"ttlAfterFinished": "1h"}}})
    ended = job(5, condition="Complete")
    assert await relist(children, 6, ended) == {KEY}
    assert children.apply(Kind.JOBS, "MODIFIED", job(7, condition="Complete")) == {KEY}
    expiring = job(8, condition="Complete")
    expiring["spec"]["ttlSecondsAfterFinished"] = 3600
    assert children.apply(Kind.JOBS, "MODIFIED", expiring) == set()
    assert await relist(children, 9, expiring) == set()


async def test_a_chain_with_an_object_that_cannot_be_read_is_read_live_and_no_other(children: Children):
    broken = a_pod(job(5), node=1)
    broken["status"]["conditions"] = [{"status": "True"}]
    broken["metadata"] |= {"namespace": "ml", "resourceVersion": "6"}
    broken["metadata"]["labels"] |= {CHAIN_LABEL: "relay"}
    children.apply(Kind.JOBS, "ADDED", job(5, key=OTHER))
    assert children.apply(Kind.PODS, "ADDED", broken) == {KEY}
    assert (states(children), states(children, OTHER)) == (None, {"a": JobState.ACTIVE})
    assert await relist(children, 7, broken, kind=Kind.PODS) == {KEY}
    assert states(children) is None
    children.load(KEY, jobs=Listed(8, []), pods=Listed(8, [broken]))
    assert states(children) is None
    children.load(KEY, jobs=Listed(9, []), pods=Listed(9, []))
    assert states(children) == {}


def test_a_job_whose_label_is_changed_leaves_its_chain(children: Children):
    children.apply(Kind.JOBS, "ADDED", job(5))
    assert children.apply(Kind.JOBS, "MODIFIED", job(6, key=OTHER)) == {KEY, OTHER}
    assert (states(children), states(children, OTHER)) == ({}, {"a": JobState.ACTIVE})


def test_chains_that_were_deleted_are_forgotten_with_their_last_object(children: Children):
    children.apply(Kind.JOBS, "ADDED", job(5))
    children.prune(set())
    assert states(children) == {"a": JobState.ACTIVE}
    children.apply(Kind.JOBS, "DELETED", job(6))
    children.prune(set())
    assert children.apply(Kind.JOBS, "ADDED", job(4)) == {KEY}  # no version is remembered


async def test_an_object_with_an_empty_label_belongs_to_no_chain(children: Children):
    nowhere = ChainKey("ml", "")
    assert children.apply(Kind.JOBS, "ADDED", job(5, key=nowhere)) == set()
    assert await relist(children, 6, job(5, key=nowhere)) == set()
    children.apply(Kind.JOBS, "ADDED", job(7, uid="b"))
    assert children.apply(Kind.JOBS, "MODIFIED", job(8, uid="b", key=nowhere)) == {KEY}
    children.job_written(job(9, uid="b", key=nowhere))
    assert (states(children), states(children, nowhere)) == ({}, {})


def test_the_answer_to_an_own_write_is_a_reason_to_look_because_it_has_what_others_wrote_before(children: Children):
    assert children.job_written(job(4)) is None, "a new Job"
    children.apply(Kind.JOBS, "ADDED", job(5))
    assert children.job_written(job(7, condition="Failed")) == KEY, "the Job controller wrote version 6"
    assert children.apply(Kind.JOBS, "MODIFIED", job(6, condition="Failed")) == set()
    assert children.apply(Kind.JOBS, "MODIFIED", job(7, condition="Failed")) == set()
    assert children.job_written(job(8, condition="Failed")) is None
