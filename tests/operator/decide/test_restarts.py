"""Pods that end again and again without a crash: how often they are replaced, and when the chain is Stalled."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from chain_builders import a_job, a_plan, a_pod
from deciding import NOON, created, decide, entry, stalled
from distillchain_api.failures import FailureClass
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.jobs.labels import PODS_ANNOTATION
from distillchain_operator.status.transitions import transitions

PLAN = a_plan(stages=["mini"], template={"image": "x", "retries": 0})
EVICTED = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]
LOW_ON_DISK = {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
REFUSED = {"reason": "OutOfcpu", "message": "Pod was rejected: Node didn't have enough resource: cpu"}


def interrupted(job: dict[str, Any], count: int) -> tuple[dict[str, Any], ...]:
    return tuple(a_pod(job, phase="Failed", exit_code=75, number=number) for number in range(count))


def evicted(job: dict[str, Any], count: int) -> tuple[dict[str, Any], ...]:
    pods = tuple(a_pod(job, phase="Failed", exit_code=137, number=n, conditions=EVICTED) for n in range(count))
    for pod in pods:
        pod["status"] |= LOW_ON_DISK
    return pods


def refused(job: dict[str, Any], number: int = 0) -> dict[str, Any]:
    pod = a_pod(job, phase="Failed", number=number)
    pod["status"] = {"phase": "Failed", **REFUSED}
    return pod


def paused(count: int, *, previous: ChainStatus | None = None, minutes: float = 1, end: Any = interrupted) -> Any:
    """The decision about a Job that is some minutes old, of which so many pods ended and one more runs."""
    job = a_job(PLAN, "mini", active=1)
    pods = (*end(job, count), a_pod(job, number=count))
    return decide(PLAN, job, pods=pods, previous=previous, now=NOON + timedelta(minutes=minutes))


def test_a_job_whose_pods_are_interrupted_every_second_is_deleted_and_created_again_after_a_pause():
    assert paused(5).actions == ()
    decision = paused(6)
    (deletion,) = decision.actions
    assert isinstance(deletion, DeleteJob)
    stage = entry(decision, "mini")
    assert (stage.phase, stage.restart_pauses) == ("Pending", 1)
    assert stage.message.startswith(
        f"6 pods were evicted or interrupted within 1 min, so Job {deletion.name} was deleted; it is created again at "
        f"{stage.next_start_at}; the last one: pod {deletion.name}-p5 ended with exit code 75"
    )
    assert [event.reason for event in transitions(ChainStatus(), decision.status)] == ["RestartsPaused"]
    assert 0 < (decision.look_again_s or 0) <= 60

    early = decide(PLAN, previous=decision.status, now=NOON + timedelta(minutes=1))
    assert (created(early), early.status) == ([], decision.status)
    assert created(decide(PLAN, previous=decision.status, now=NOON + timedelta(minutes=3))) == ["mini"]


@pytest.mark.parametrize("count, minutes, pauses", [(8, 61, None), (9, 59, 1), (77, 24 * 60, None)])
def test_pods_on_spot_nodes_may_be_replaced_every_20_minutes(count: int, minutes: float, pauses: int | None):
    assert entry(paused(count, minutes=minutes), "mini").restart_pauses == pauses


def test_a_job_that_ran_well_for_days_may_lose_no_more_pods_at_once_than_a_new_one():
    job = a_job(PLAN, "mini", active=1)
    now = NOON + timedelta(days=3)

    def ends(count: int) -> tuple[dict[str, Any], ...]:
        pods = (*interrupted(job, count), a_pod(job, number=count))
        for pod in pods[:-1]:
            pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = now.isoformat()
        return pods

    assert entry(decide(PLAN, job, pods=ends(5), now=now), "mini").phase == "Running"
    again = entry(decide(PLAN, job, pods=ends(6), now=now), "mini")
    assert (again.phase, again.restart_pauses) == ("Pending", 1)
    assert again.message.startswith("6 pods were evicted or interrupted within 1 min")


def test_a_node_whose_clock_is_behind_causes_the_same_pause():
    job = a_job(PLAN, "mini", active=1)
    pods = interrupted(job, 6)
    for pod in pods:
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2025-12-01T00:00:00Z"
    assert entry(decide(PLAN, job, pods=pods), "mini").restart_pauses == 1


@pytest.mark.parametrize("listed", [True, False])
def test_pods_that_are_deleted_as_at_a_suspension_or_preemption_cause_no_pause(listed: bool):
    job = a_job(PLAN, "mini", active=1)
    stopped = interrupted(job, 9)
    job["metadata"]["annotations"] = {PODS_ANNOTATION: ",".join(pod["metadata"]["uid"] for pod in stopped)}
    for pod in stopped:
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:02:00Z"
    pods = (*(stopped if listed else ()), a_pod(job, number=9))
    assert entry(decide(PLAN, job, pods=pods), "mini").phase == "Running"


def test_endless_evictions_end_in_stalled_with_the_reason_of_the_kubelet():
    status, lengths = ChainStatus(), []
    for minutes in (1, 4, 9):  # each time after the pause before
        status = paused(6, previous=status, end=evicted, minutes=minutes).status
        lengths.append(status.stages[0].next_start_at or "")
    assert lengths == sorted(set(lengths))  # each pause is longer
    decision = decide(PLAN, previous=status, now=NOON + timedelta(minutes=9))
    assert (stalled(decision).status, stalled(decision).reason) == ("True", "Interrupted")
    assert stalled(decision).message.endswith(
        "the last pod was evicted from node node-7: Evicted: The node was low on resource: ephemeral-storage."
    )


def test_a_job_that_is_an_hour_old_has_left_earlier_pauses_behind():
    before = paused(6).status
    again = decide(PLAN, previous=before, now=NOON + timedelta(minutes=3)).status
    young = paused(0, previous=again, minutes=59).status
    assert young.stages[0].restart_pauses == 1
    assert paused(0, previous=young, minutes=60).status.stages[0].restart_pauses is None


def test_crashes_and_a_suspended_chain_cause_no_pause():
    plan = a_plan(stages=["mini"], template={"image": "x", "retries": 9})
    job = a_job(plan, "mini", active=1, failed=5)
    crashed = tuple(a_pod(job, phase="Failed", exit_code=70, number=number) for number in range(6))
    assert entry(decide(plan, job, pods=crashed), "mini").phase == "Running"

    suspended = a_plan(stages=["mini"], template={"image": "x", "retries": 0}, suspend=True)
    job = a_job(suspended, "mini", suspended=True)
    assert entry(decide(suspended, job, pods=interrupted(job, 7)), "mini").phase == "Suspended"


def test_pods_that_nodes_refuse_to_run_are_no_crashes():
    job = a_job(PLAN, "mini", condition="Failed", reason="BackoffLimitExceeded", failed=1)
    pod = refused(job)
    decision = decide(PLAN, job, pods=(pod,))
    assert [type(action) for action in decision.actions] == [DeleteJob]
    assert entry(decision, "mini").phase == "Pending"
    why = f"node node-7 refused pod {pod['metadata']['name']}: OutOfcpu: Pod was rejected"
    assert why in entry(decision, "mini").message
    tried_again = a_job(PLAN, "mini", failed=1)
    assert why in entry(decide(PLAN, tried_again, pods=(refused(tried_again),)), "mini").message

    third = entry(decision, "mini").model_copy(update={"restart_pauses": 2, "next_start_at": None})
    stuck = decide(PLAN, job, pods=(pod,), previous=decision.status.model_copy(update={"stages": [third]}))
    assert (stalled(stuck).status, stalled(stuck).reason) == ("True", FailureClass.POD_REJECTED)


def test_a_stage_whose_crashes_alone_use_up_the_retries_fails():
    plan = a_plan(stages=["mini"], template={"image": "x", "retries": 1})
    job = a_job(plan, "mini", condition="Failed", reason="BackoffLimitExceeded", failed=3)
    crashed = [a_pod(job, phase="Failed", exit_code=70, number=number) for number in (0, 1)]
    assert entry(decide(plan, job, pods=(*crashed, refused(job, 2))), "mini").phase == "Failed"
