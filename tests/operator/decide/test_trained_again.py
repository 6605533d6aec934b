"""Stages that the user lets run again although they are committed."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_committed_job, a_job, a_plan, a_pod, retrying
from deciding import a_failed_job, created, decide, entry
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from distillchain_operator.decide.actions import Decision, DeleteJob

PLAN = a_plan(stages=["mini", "tiny", "nano"])


def deleted(decision: Decision) -> set[str]:
    return {action.name for action in decision.actions if isinstance(action, DeleteJob)}


def done(plan: Plan, *stages: str) -> tuple[list[dict[str, Any]], tuple[dict[str, Any], ...]]:
    found = [a_committed_job(plan, stage) for stage in stages]
    return [job for job, _ in found], tuple(pod for _, pod in found)


def test_stages_from_the_chosen_one_run_again_and_their_old_jobs_do_not_count():
    jobs, pods = done(PLAN, "mini", "tiny", "nano")
    status = decide(PLAN, *jobs, pods=pods).status
    assert status.phase == "Succeeded"
    again = retrying(PLAN, "tiny", "nano", committed_too=True)

    first = decide(again, *jobs, pods=pods, previous=status)

    assert [entry(first, stage).phase for stage in ("mini", "tiny", "nano")] == ["Committed", "Pending", "Pending"]
    assert deleted(first) == {job["metadata"]["name"] for job in jobs[1:]}
    assert (first.status.result, first.look_again_s) == (None, 0.1)
    for job in jobs[1:]:
        job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:05Z"
    assert created(decide(again, *jobs, pods=pods, previous=first.status)) == [], "the old Jobs are still there"
    second = decide(again, jobs[0], pods=pods[:1], previous=first.status)
    assert (created(second), entry(second, "nano").phase) == (["tiny"], "Pending")


@pytest.mark.parametrize("kept", [0, 1])
def test_without_jobs_the_stages_run_again_too(kept: int):
    jobs, pods = done(PLAN, "mini", "tiny", "nano")
    status = decide(PLAN, *jobs, pods=pods).status
    again = retrying(PLAN, "mini", "tiny", "nano", committed_too=True)
    first = decide(again, *jobs[:kept], pods=pods[:kept], previous=status)
    assert created(first) == []
    assert created(decide(again, previous=first.status)) == ["mini"]


def test_a_suspended_job_of_a_later_stage_is_deleted_too_because_its_teacher_changes():
    suspended = a_plan(stages=["mini", "tiny", "nano"], suspend=True)
    jobs, pods = done(suspended, "mini")
    running = a_job(suspended, "tiny", suspended=True)
    status = decide(suspended, *jobs, running, pods=pods).status
    again = retrying(suspended, "mini", "tiny", "nano", committed_too=True)
    decision = decide(again, *jobs, running, pods=pods, previous=status)
    assert deleted(decision) == {jobs[0]["metadata"]["name"], running["metadata"]["name"]}
    later = decide(again, previous=decision.status)
    assert (created(later), later.status.phase) == ([], "Suspended")


def test_a_request_is_handled_once_and_a_request_for_failures_leaves_commits_alone():
    jobs, pods = done(PLAN, "mini", "tiny", "nano")
    status = decide(PLAN, *jobs, pods=pods).status
    again = retrying(PLAN, "nano", committed_too=True)
    handled = decide(again, *jobs, pods=pods, previous=status).status.handled_retry
    seen = status.model_copy(update={"handled_retry": handled})
    assert decide(again, *jobs, pods=pods, previous=seen).actions == ()
    failures_only = decide(retrying(PLAN, "nano"), *jobs, pods=pods, previous=status)
    assert (failures_only.actions, failures_only.status.phase) == ((), "Succeeded")


@pytest.mark.parametrize("committed_too", [True, False])
def test_a_status_that_is_older_than_the_jobs_deletes_no_job_of_the_same_request(committed_too: bool):
    failed, pod = a_failed_job(PLAN, "mini", FailureClass.CRASHED)
    outdated = decide(PLAN, failed, pods=(pod,)).status
    again = retrying(PLAN, "mini", "tiny", "nano", committed_too=committed_too)
    running = a_job(again, "mini", active=1)
    assert running["metadata"]["name"] == failed["metadata"]["name"]
    decision = decide(again, running, pods=(a_pod(running, number=1),), previous=outdated)
    assert (deleted(decision), entry(decision, "mini").phase) == (set(), "Running")
    refailed, pod = a_failed_job(again, "mini", FailureClass.CRASHED, sentence="again")
    decision = decide(again, refailed, pods=(pod,), previous=outdated)
    assert (deleted(decision), entry(decision, "mini").message) == (set(), "again")
    committed, pod = a_committed_job(again, "mini")
    decision = decide(again, committed, pods=(pod,), previous=outdated)
    assert (deleted(decision), created(decision)) == (set(), ["tiny"] if not committed_too else [])


def test_a_pod_that_still_runs_delays_the_next_one():
    jobs, pods = done(PLAN, "mini", "tiny", "nano")
    status = decide(PLAN, *jobs, pods=pods).status
    again = retrying(PLAN, "mini", "tiny", "nano", committed_too=True)
    first = decide(again, *jobs, pods=pods, previous=status)
    left = a_pod(jobs[2], number=9)
    assert created(decide(again, pods=(left,), previous=first.status)) == []
