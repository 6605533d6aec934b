"""What one reconcile decides about a stage on several nodes, and about pods that wait longer than `pendingDeadline`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from chain_builders import CHAIN_UID, IMAGE, a_commit, a_failure, a_job, a_plan, a_pod
from deciding import NOON, created, decide, deleted, entry
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_api.wire.answer import Progress
from distillchain_api.wire.work_order import RENDEZVOUS_PORT
from distillchain_operator.decide.actions import CreatePart, SetSuspend
from distillchain_operator.decide.reconcile import running_pod
from distillchain_operator.jobs.group import TORCH_PORT
from distillchain_operator.jobs.labels import INDEX_ANNOTATION
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.status.transitions import transitions
from policy_rules import admits, isolates

NO_NODE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "Insufficient nvidia.com/gpu",
}


def two_nodes(*, deadline: str | None = None, **chain: Any) -> Plan:
    template: dict[str, Any] = {"image": IMAGE, "parallelism": {"nodes": 2}}
    if deadline:
        template["pendingDeadline"] = deadline
    return a_plan(**{"template": template, **chain})


def waiting(job: dict[str, Any], *, node: int = 1, number: int = 0) -> dict[str, Any]:
    return a_pod(job, phase="Pending", node=node, number=number, conditions=[NO_NODE])


def parts(decision: Any) -> list[str]:
    return [action.manifest["kind"] for action in decision.actions if isinstance(action, CreatePart)]


# How the pods meet


def test_a_job_on_several_nodes_gets_what_it_lacks_until_it_has_finished():
    plan = two_nodes()
    job = a_job(plan, "mini")
    decision = decide(plan, job, parts=False)
    assert parts(decision) == ["NetworkPolicy", "Service"]
    owners = [action.manifest["metadata"]["ownerReferences"][0]["uid"] for action in decision.actions]
    assert owners == [job["metadata"]["uid"]] * 2
    assert parts(decide(plan, job)) == []
    assert parts(decide(plan, a_job(plan, "mini", condition="Failed"), parts=False)) == []


def test_a_job_on_one_node_gets_neither_service_nor_policy():
    plan = a_plan()
    assert parts(decide(plan, a_job(plan, "mini"), parts=False)) == []


def test_the_policy_of_a_group_admits_its_own_pods_to_every_port_and_nobody_else():
    plan = two_nodes(stages=["mini", "tiny"])
    job, other = a_job(plan, "mini"), a_job(plan, "tiny")
    (policy,) = (
        action.manifest
        for action in decide(plan, job, parts=False).actions
        if isinstance(action, CreatePart) and action.manifest["kind"] == "NetworkPolicy"
    )

    def placed(pod: dict[str, Any], namespace: str = policy["metadata"]["namespace"]) -> dict[str, Any]:
        return {**pod, "metadata": {**pod["metadata"], "namespace": namespace}}

    first, second = placed(a_pod(job, node=0)), placed(a_pod(job, node=1))
    strangers = {
        "a pod without labels": placed({"metadata": {}}),
        "the pods of another stage": placed(a_pod(other, node=0)),
        "a pod with the same labels in another namespace": placed(a_pod(job, node=0), "elsewhere"),
    }
    for port in (RENDEZVOUS_PORT, TORCH_PORT, 45678):  # the launchers', torch's, and one that NCCL chooses
        assert admits(policy, first, second, port)
        assert admits(policy, second, first, port)
        for name, stranger in strangers.items():
            assert not admits(policy, stranger, first, port), name
            assert admits(policy, first, stranger, port), f"{name} must not be restricted"
    assert not isolates(policy, first, "Egress"), "store, hub and DNS must stay reachable"


# Whose answer, log and failure count


def test_only_the_answer_of_node_0_commits_a_stage():
    plan = two_nodes()
    job = a_job(plan, "mini", active=2)
    message = a_commit(plan.stages[0]).to_json()
    pods = (a_pod(job, node=0), a_pod(job, node=1, phase="Succeeded", exit_code=0, message=message))
    assert entry(decide(plan, job, pods=pods), "mini").phase == "Running"
    pods = (a_pod(job, node=0, phase="Succeeded", exit_code=0, message=message), a_pod(job, node=1))
    decision = decide(plan, job, pods=pods)
    assert entry(decision, "mini").phase == "Committed"
    assert created(decision) == []  # the pod of node 1 still runs


def test_progress_is_read_from_node_0():
    plan = two_nodes()
    job = a_job(plan, "mini")
    pods = [a_pod(job, node=1), a_pod(job, node=0)]
    found = running_pod(plan, observe(chain_uid=CHAIN_UID, jobs=[job], pods=pods))
    assert found is not None
    assert found.name == pods[1]["metadata"]["name"]


@pytest.mark.parametrize("index", ["first", "-1", "9" * 5000])
def test_a_pod_whose_index_somebody_has_changed_is_not_node_0_of_a_group_and_is_that_of_a_single_node(index: str):
    message = a_commit(two_nodes().stages[0]).to_json()
    for plan, phase in [(two_nodes(), "Running"), (a_plan(), "Committed")]:
        job = a_job(plan, "mini")
        pod = a_pod(job, phase="Succeeded", exit_code=0, message=message)
        pod["metadata"]["annotations"] = {INDEX_ANNOTATION: index}
        assert entry(decide(plan, job, pods=(pod,)), "mini").phase == phase


@pytest.mark.parametrize(
    "reason, others",
    [
        pytest.param("PodFailurePolicy", {"exit_code": 75}, id="the others lost a peer and saved"),
        pytest.param("PodFailurePolicy", {"exit_code": 70}, id="another crashed in a collective"),
        pytest.param("BackoffLimitExceeded", {"exit_code": 75}, id="the last crash"),
        pytest.param(
            "BackoffLimitExceeded",
            {"exit_code": 137, "conditions": [{"type": "DisruptionTarget", "status": "True"}]},
            id="another was evicted",
        ),
    ],
)
def test_a_group_failed_for_the_reason_of_the_pod_that_failed_by_itself(reason: str, others: dict[str, Any]):
    plan = two_nodes()
    job = a_job(plan, "mini", condition="Failed", reason=reason, failed=1)
    code, failure_class = (66, "CheckpointInvalid") if reason == "PodFailurePolicy" else (71, "OutOfMemory")
    message = a_failure(plan.stages[0], FailureClass(failure_class), "its own reason").to_json()
    pods = (
        a_pod(job, node=1, phase="Failed", exit_code=code, message=message),
        a_pod(job, node=0, phase="Failed", number=1, **others),
    )
    stage = entry(decide(plan, job, pods=pods), "mini")
    assert (stage.failure_class, stage.message) == (failure_class, "its own reason")


def test_pods_that_were_stopped_because_the_job_failed_are_no_failed_attempts():
    plan = two_nodes(template={"image": IMAGE, "parallelism": {"nodes": 2}, "retries": 0})
    job = a_job(plan, "mini", condition="Failed", reason="BackoffLimitExceeded", failed=2)
    pod = a_pod(job, node=1, phase="Failed", exit_code=137, reason="OOMKilled")
    assert "failed attempts" not in entry(decide(plan, job, pods=(pod,)), "mini").message


def test_attempts_are_counted_by_the_pods_of_node_0():
    plan = two_nodes()
    job = a_job(plan, "mini", active=2, failed=1)
    pods = (
        a_pod(job, node=0, phase="Failed", exit_code=75),
        a_pod(job, node=1, phase="Failed", exit_code=71),
        a_pod(job, node=0, number=1),
        a_pod(job, node=1, number=1),
    )
    stage = entry(decide(plan, job, pods=pods), "mini")
    assert stage.attempt == 2
    assert stage.message.startswith("attempt 2, 1 of 4 allowed crashes used: ")


def test_an_eviction_is_named_although_the_other_pod_ended_after_it():
    plan = two_nodes()
    job = a_job(plan, "mini", active=2)
    evicted = {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]}
    pods = (
        a_pod(job, node=1, phase="Failed", exit_code=75, **evicted),
        a_pod(job, node=0, phase="Failed", exit_code=75, number=1),
        a_pod(job, node=0, number=2),
        a_pod(job, node=1, number=2),
    )
    want = "attempt 2; the last pod was evicted from node node-7: PreemptionByScheduler"
    assert entry(decide(plan, job, pods=pods), "mini").message == want


def test_a_group_whose_other_pod_finished_before_node_0_had_to_start_again_runs_again():
    """The Job controller does not start a succeeded index again, so node 0 would wait for it forever."""
    plan = two_nodes()
    job = a_job(plan, "mini")
    done = a_pod(job, node=1, phase="Succeeded", exit_code=0)
    assert deleted(decide(plan, job, pods=(a_pod(job, node=0), done))) == []
    assert deleted(decide(plan, job, pods=(a_pod(job, node=0, number=9), done))) == [job["metadata"]["name"]]


# What the user sees, and what an edit or a suspension does


def test_the_message_counts_the_pods_and_says_what_one_waits_for():
    plan = two_nodes()
    job = a_job(plan, "mini", active=2)
    pods = (a_pod(job, node=0), waiting(job))
    name = pods[1]["metadata"]["name"]
    stage = entry(decide(plan, job, pods=pods), "mini")
    assert stage.message == (f"1 of 2 pods are running; pod {name} is waiting for a node: Insufficient nvidia.com/gpu")
    assert entry(decide(plan, job, pods=(pods[0], a_pod(job, node=1))), "mini").message is None


def test_suspend_deletes_a_group_of_which_a_pod_waits_and_stops_one_that_runs():
    """Kubernetes counts a pod that is stopped before it ran as a crash."""
    plan = two_nodes()
    job = a_job(plan, "mini", active=2)
    suspended = two_nodes(suspend=True)
    assert deleted(decide(suspended, job, pods=(a_pod(job, node=0), waiting(job)))) == [job["metadata"]["name"]]
    (action,) = decide(suspended, job, pods=(a_pod(job, node=0), a_pod(job, node=1))).actions
    assert isinstance(action, SetSuspend)


@pytest.mark.parametrize("is_complete", [True, False])
def test_an_edit_of_the_number_of_nodes_waits_for_a_group_that_trains(is_complete: bool):
    plan, edited = two_nodes(), two_nodes(template={"image": IMAGE, "parallelism": {"nodes": 3}}, generation=2)
    job = a_job(plan, "mini", active=2)
    pods = (a_pod(job, node=0), a_pod(job, node=1) if is_complete else waiting(job))
    assert deleted(decide(edited, job, pods=pods)) == ([] if is_complete else [job["metadata"]["name"]])
    assert edited.stages[0].digest == plan.stages[0].digest


# pendingDeadline


def minutes(count: float) -> datetime:
    return NOON + timedelta(minutes=count)


def test_a_job_of_which_a_pod_waits_too_long_is_deleted_and_created_again_after_a_pause_that_doubles():
    plan = two_nodes(deadline="10m")
    job = a_job(plan, "mini", active=2)
    name, pods = job["metadata"]["name"], (a_pod(job, node=0), waiting(job))
    early = decide(plan, job, pods=pods, now=minutes(4))
    assert (deleted(early), early.look_again_s) == ([], 360)

    late = decide(plan, job, pods=pods, now=minutes(10), previous=early.status)
    assert deleted(late) == [name]
    stage = entry(late, "mini")
    again = datetime.fromisoformat(stage.next_start_at)
    assert minutes(10.5) <= again <= minutes(11)
    assert stage.message == (
        f"1 of 2 pods ran within the pendingDeadline of 600 s, so Job {name} was deleted; it is created again at "
        f"{stage.next_start_at}; pod {pods[1]['metadata']['name']} is waiting for a node: Insufficient nvidia.com/gpu"
    )
    assert [event.reason for event in transitions(early.status, late.status)] == ["PendingDeadlineExceeded"]

    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:10:00Z"
    stopping = decide(plan, job, pods=pods[:1], now=minutes(10.2), previous=late.status)
    gone = decide(plan, now=minutes(10.4), previous=stopping.status)
    assert (stopping.actions, gone.actions) == ((), ())
    assert entry(stopping, "mini") == entry(gone, "mini") == stage
    assert gone.look_again_s == (again - minutes(10.4)).total_seconds()

    second = decide(plan, now=again, previous=gone.status)
    assert created(second) == ["mini"]
    del job["metadata"]["deletionTimestamp"]
    job["metadata"]["creationTimestamp"] = job["status"]["startTime"] = again.strftime("%Y-%m-%dT%H:%M:%SZ")
    waits = decide(plan, job, pods=pods, now=minutes(9), previous=second.status)  # its pods are of noon
    assert entry(waits, "mini").missed_starts == 1
    missed = decide(plan, job, pods=pods, now=minutes(60), previous=waits.status)
    assert minutes(61) <= datetime.fromisoformat(entry(missed, "mini").next_start_at) <= minutes(62)
    runs = decide(plan, job, pods=(a_pod(job, node=0), a_pod(job, node=1)), now=minutes(60), previous=waits.status)
    assert entry(runs, "mini").missed_starts is None


def test_an_edit_ends_the_pause():
    plan = two_nodes(deadline="10m")
    job = a_job(plan, "mini", active=2)
    late = decide(plan, job, pods=(a_pod(job, node=0), waiting(job)), now=minutes(10))
    assert created(decide(plan, now=minutes(10), previous=late.status)) == []
    edited = two_nodes(generation=2, template={"image": IMAGE, "pendingDeadline": "10m"})
    assert created(decide(edited, now=minutes(10), previous=late.status)) == ["mini"]


def test_a_pod_that_a_lost_node_keeps_frees_the_others_of_its_group_after_the_deadline():
    plan = two_nodes(deadline="10m")
    job = a_job(plan, "mini", active=2)
    name, pods = job["metadata"]["name"], (a_pod(job, node=0), a_pod(job, node=1))
    pods[1]["metadata"]["deletionTimestamp"] = "2026-01-01T12:20:00Z"  # it had until then to save its state
    early = decide(plan, job, pods=pods, now=minutes(25))
    assert (deleted(early), deleted(decide(plan, job, pods=pods, now=minutes(15)))) == ([], [])

    late = decide(plan, job, pods=pods, now=minutes(30), previous=early.status)

    assert deleted(late) == [name]
    assert entry(late, "mini").message.startswith("1 of 2 pods ran within the pendingDeadline of 600 s")
    assert "node node-7 does not confirm that pod" in entry(late, "mini").message


def test_a_pod_that_a_quota_keeps_from_being_created_counts_as_waiting_until_the_stage_has_trained():
    plan = two_nodes(deadline="10m")
    job = a_job(plan, "mini", active=1)
    pods = (a_pod(job, node=0),)
    assert deleted(decide(plan, job, pods=pods, now=minutes(10))) == [job["metadata"]["name"]]
    progress = Progress(stage="mini", phase="Train", step=1, of=9)
    trained = decide(plan, job, pods=(*pods, a_pod(job, node=1)), progress=progress).status
    # The pod of node 1 was evicted and deleted, and the Job controller is about to replace it.
    assert deleted(decide(plan, job, pods=pods, now=minutes(10), previous=trained)) == []
    assert deleted(decide(plan, job, pods=(*pods, waiting(job, number=9)), now=minutes(11), previous=trained)) == [
        job["metadata"]["name"]
    ]


def test_without_a_deadline_or_while_another_controller_holds_the_job_nothing_is_deleted():
    plan = two_nodes()
    job = a_job(plan, "mini", active=2)
    assert deleted(decide(plan, job, pods=(a_pod(job, node=0), waiting(job)), now=minutes(1e4))) == []
    plan = two_nodes(deadline="10m")
    job = a_job(plan, "mini", suspended=True)
    job["metadata"]["annotations"] = {}
    assert deleted(decide(plan, job, now=minutes(1e4))) == []


def test_a_single_pod_that_cannot_start_is_deleted_too():
    """It may hold a GPU while it waits for an image or a volume."""
    plan = a_plan(template={"image": IMAGE, "pendingDeadline": "1m"})
    job = a_job(plan, "mini", active=1)
    decision = decide(plan, job, pods=(a_pod(job, phase="Pending"),), now=minutes(2))
    assert deleted(decision) == [job["metadata"]["name"]]
    assert entry(decision, "mini").message.startswith("its pod did not start within the pendingDeadline of 60 s")
    assert ChainStatus.parse(decision.status.to_document()) == decision.status
