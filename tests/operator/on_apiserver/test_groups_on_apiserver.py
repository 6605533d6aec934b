"""Stages on several nodes, with the real Job controller: which pods it creates, replaces and counts."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_commit, a_document, a_failure
from distillchain_api.failures import FailureClass
from distillchain_api.wire.work_order import RENDEZVOUS_PORT
from policy_rules import admits, isolates
from relay import RETRY_DEADLINE_S, Relay, container_status

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

INDEX = "batch.kubernetes.io/job-completion-index"
NODES = 2


def a_group(**template: Any) -> dict[str, Any]:
    return a_document(
        stages=["mini"], template={"image": "x", "parallelism": {"nodes": NODES}, "retries": 1, **template}
    )


def wait_for_pods(relay: Relay, *, other_than: dict[int, str] | None = None) -> dict[int, str]:
    """Names of the unfinished pods by node, once there is one for each node."""

    def probe() -> dict[int, str] | None:
        unfinished = [
            pod
            for pod in relay.pods("mini")
            if pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]
        ]
        found = {int(pod["metadata"]["annotations"][INDEX]): pod["metadata"]["name"] for pod in unfinished}
        assert len(found) == len(unfinished), "two pods on one node"
        is_new = not set(found.values()) & set((other_than or {}).values())
        return found if len(found) == NODES and is_new else None

    pods: dict[int, str] = relay.wait("a pod for each node", probe, deadline_s=RETRY_DEADLINE_S)
    return pods


def test_two_pods_find_each_other_and_the_answer_of_node_0_ends_the_job(relay: Relay):
    relay.apply(a_group())
    pods = wait_for_pods(relay)
    (job,) = relay.jobs("mini")
    name = job["metadata"]["name"]
    for node, pod in pods.items():
        spec = relay.cluster.get("pod", pod, "-n", relay.namespace)["spec"]
        assert (spec["hostname"], spec["subdomain"]) == (f"{name}-{node}", name)
        env = {entry["name"] for entry in spec["containers"][0]["env"]}
        assert {"JOB_COMPLETION_INDEX", "DISTILLCHAIN_RENDEZVOUS"} <= env

    def parts() -> list[str]:
        items = relay.cluster.get("services,networkpolicies", "-n", relay.namespace)["items"]
        owners = {item["metadata"]["ownerReferences"][0]["uid"] for item in items}
        assert owners <= {job["metadata"]["uid"]}
        return sorted(item["kind"] for item in items)

    relay.wait("Service and NetworkPolicy", lambda: parts() == ["NetworkPolicy", "Service"])
    policy = relay.cluster.get("networkpolicy", name, "-n", relay.namespace)
    first, second = (relay.cluster.get("pod", pods[node], "-n", relay.namespace) for node in range(NODES))
    assert isolates(policy, first, "Ingress"), "the labels that the Job controller gives its pods"
    assert admits(policy, first, second, RENDEZVOUS_PORT)
    relay.kubectl("delete", "service", name)
    relay.run(pods[0])  # an event, so that the chain is reconciled
    relay.wait("the Service again", lambda: parts() == ["NetworkPolicy", "Service"])
    message = f"1 of 2 pods are running; pod {pods[1]} is starting"
    relay.wait("the count of pods", lambda: relay.stage("mini").get("message") == message)

    relay.run(pods[1])
    relay.end(pods[0], exit_code=0, message=a_commit(relay.planned("mini")).to_json())
    relay.wait_for_phase("Succeeded")
    # The Job controller stops the other pod, and the garbage collector deletes what belongs to the Job.
    relay.wait("the Job complete", lambda: relay.jobs("mini")[0]["status"].get("completionTime"))
    relay.kubectl("delete", "job", name)
    relay.wait("everything gone", lambda: not parts() and not relay.pods(), deadline_s=RETRY_DEADLINE_S)


def test_a_group_starts_again_as_a_whole_and_only_the_pod_that_crashed_counts(relay: Relay):
    relay.apply(a_group())
    first = wait_for_pods(relay)
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    relay.end(first[1], exit_code=75, reason="Error", conditions=[disrupted])
    relay.end(first[0], exit_code=75, reason="Error")
    second = wait_for_pods(relay, other_than=first)
    relay.end(second[1], exit_code=137, reason="OOMKilled")
    relay.end(second[0], exit_code=75, reason="Error")
    third = wait_for_pods(relay, other_than=second)
    counted = "attempt 3, 1 of 2 allowed crashes used: "
    relay.wait("one crash", lambda: counted in relay.stage("mini").get("message", ""))

    answer = a_failure(relay.planned("mini"), FailureClass.CRASHED, "rank 1 crashed")
    relay.end(third[0], exit_code=75, reason="Error")
    relay.end(third[1], exit_code=70, message=answer.to_json(), reason="Error")
    status = relay.wait_for_phase("Failed")
    assert status["message"] == "mini: rank 1 crashed (the last of 2 failed attempts)"
    assert len(relay.jobs()) == 1


def test_a_pod_that_waits_longer_than_the_pending_deadline_frees_the_other(relay: Relay):
    relay.apply(a_group(pendingDeadline="2s"))
    pods = wait_for_pods(relay)
    first = relay.jobs("mini")[0]["metadata"]["uid"]
    relay.run(pods[0])
    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU is free"}
    relay.write_pod_status(pods[1], conditions=[waits], containerStatuses=[container_status({"waiting": {}})])
    relay.wait("the next start", lambda: relay.stage("mini").get("nextStartAt"))
    stage = relay.stage("mini")
    assert (stage["phase"], stage["missedStarts"]) == ("Pending", 1)
    assert "PendingDeadlineExceeded" in relay.wait("the event", relay.events)
    relay.wait("the pods gone", lambda: not relay.pods("mini") and not relay.jobs("mini"))
    assert relay.stage("mini")["message"] == stage["message"]
    document = a_group()  # an edit ends the pause
    relay.apply(document)
    wait_for_pods(relay)
    assert relay.jobs("mini")[0]["metadata"]["uid"] != first
