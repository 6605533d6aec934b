"""Which pod failures count against the retries, and how a failure is described."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from chain_builders import NOON, a_failure, a_job, a_plan, a_pod
from distillchain_api.failures import FATAL_EXIT_CODES, FailureClass
from distillchain_operator.jobs.parsing import parse_job, parse_pod
from distillchain_operator.jobs.policy import POD_FAILURE_POLICY, describe_pod, diagnose

PLAN = a_plan()


def action_for(*, exit_code: int, disrupted: bool = False) -> str:
    """What the Job controller does: the first rule that matches, else it counts the failure."""
    for rule in POD_FAILURE_POLICY["rules"]:
        if disrupted and "onPodConditions" in rule:
            return str(rule["action"])
        if exit_code in rule.get("onExitCodes", {}).get("values", []):
            return str(rule["action"])
    return "Count"


@pytest.mark.parametrize(
    "exit_code, disrupted, want",
    [
        *(pytest.param(code, False, "FailJob", id=f"fatal {code}") for code in FATAL_EXIT_CODES),
        pytest.param(75, False, "Ignore", id="interrupted, state saved"),
        pytest.param(137, True, "Ignore", id="killed by an eviction"),
        pytest.param(69, True, "Ignore", id="lost its network while it was evicted"),
        pytest.param(137, False, "Count", id="out of memory"),
        pytest.param(70, False, "Count", id="crash"),
        pytest.param(74, False, "Count", id="store unavailable"),
    ],
)
def test_an_exit_code_leads_to_the_action_of_the_design(exit_code: int, disrupted: bool, want: str):
    assert action_for(exit_code=exit_code, disrupted=disrupted) == want


@pytest.mark.parametrize(
    "reason, pods, want_class, want_words",
    [
        pytest.param(
            "PodFailurePolicy",
            [{"exit_code": 68, "message": a_failure(PLAN.stages[0], FailureClass.GATE_NOT_MET, "too weak").to_json()}],
            FailureClass.GATE_NOT_MET,
            "too weak",
            id="the trainer's own message",
        ),
        pytest.param(
            "BackoffLimitExceeded",
            [{"exit_code": 1, "number": 0}, {"exit_code": 137, "reason": "OOMKilled", "number": 1}],
            FailureClass.OUT_OF_MEMORY,
            "was OOMKilled (exit code 137)",
            id="the newest pod decides",
        ),
        pytest.param(
            "BackoffLimitExceeded",
            [{"exit_code": 137, "reason": "Error"}],
            FailureClass.CRASHED,
            "was killed (exit code 137)",
            id="killed, but not for memory",
        ),
        pytest.param(
            "BackoffLimitExceeded",
            [{"exit_code": 137, "reason": "ContainerStatusUnknown", "message": "The container could not be located"}],
            FailureClass.CRASHED,
            "on node node-7: ContainerStatusUnknown: The container could not be located",
            id="the node was restarted",
        ),
        pytest.param(
            "BackoffLimitExceeded",
            [{"exit_code": 137, "reason": "Error", "podReason": "DeadlineExceeded"}],
            FailureClass.CRASHED,
            "on node node-7: DeadlineExceeded",
            id="a deadline of the pod template",
        ),
        pytest.param(
            "BackoffLimitExceeded",
            [{"exit_code": 1, "message": "no module named distillchain_trainer"}],
            FailureClass.CRASHED,
            "ended with exit code 1: no module named distillchain_trainer",
            id="no answer, but some output",
        ),
        pytest.param(
            "PodFailurePolicy", [{"exit_code": 66}], FailureClass.CHECKPOINT_INVALID, "exit code 66", id="only a code"
        ),
        pytest.param(
            "DeadlineExceeded", [], FailureClass.DEADLINE_EXCEEDED, "ran longer than its timeout", id="timeout"
        ),
        pytest.param("BackoffLimitExceeded", [], FailureClass.CRASHED, "its pods were deleted", id="no pod is left"),
        pytest.param(
            "BackoffLimitExceeded",
            [{"exit_code": None, "podReason": "UnexpectedAdmissionError"}],
            FailureClass.POD_REJECTED,
            "did not run: UnexpectedAdmissionError",
            id="the kubelet refused it",
        ),
    ],
)
def test_the_failure_of_a_job_has_a_class_and_a_message(
    reason: str, pods: list[dict[str, Any]], want_class: FailureClass, want_words: str
):
    job = a_job(PLAN, "mini", condition="Failed", reason=reason, failed=len(pods))
    seen = []
    for pod in pods:
        rest = {key: value for key, value in pod.items() if key != "podReason"}
        more = {"reason": pod["podReason"]} if "podReason" in pod else {}
        made = a_pod(job, phase="Failed", **rest)
        made["status"] |= more
        seen.append(parse_pod(made))
    diagnosis = diagnose(parse_job(job), seen)
    assert diagnosis.failure_class is want_class
    assert want_words in diagnosis.message


@pytest.mark.parametrize(
    "trainer",
    [pytest.param(None, id="before the trainer started"), pytest.param(0, id="after the trainer finished")],
)
def test_a_failed_container_of_the_user_is_named(trainer: int | None):
    job = a_job(PLAN, "mini", condition="Failed", reason="BackoffLimitExceeded", failed=1)
    pod = a_pod(job, phase="Failed", exit_code=trainer)
    ended = {"exitCode": 3, "reason": "Error", "message": "no such bucket"}
    pod["status"]["initContainerStatuses"] = [{"name": "fetch", "state": {"terminated": ended}}]
    diagnosis = diagnose(parse_job(job), [parse_pod(pod)])
    assert diagnosis.failure_class is FailureClass.CRASHED
    name = pod["metadata"]["name"]
    want = f"container fetch of pod {name} ended with exit code 3: no such bucket; see kubectl logs {name} -c fetch"
    assert diagnosis.message == want


def test_a_timeout_before_training_reports_what_the_pod_waited_for():
    job = a_job(PLAN, "mini", condition="Failed", reason="DeadlineExceeded")
    diagnosis = diagnose(parse_job(job), [], waited_for="pod p waits for a node: 0/1 nodes")
    assert diagnosis.message.startswith("training did not start within the timeout of")
    assert diagnosis.message.endswith("pod p waits for a node: 0/1 nodes")


@pytest.mark.parametrize(
    "status, want_words, want_stuck",
    [
        pytest.param({}, "is starting", False, id="fresh"),
        pytest.param({"old": True}, "has not started yet; run kubectl describe pod", False, id="for minutes"),
        pytest.param(
            {"containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            "cannot start: ErrImagePull",
            True,
            id="a wrong image, the other reason",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {"name": "trainer", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "shipper", "state": {"running": {}}},
                ]
            },
            "the trainer has finished, but container shipper of pod",
            False,
            id="a sidecar that still runs",
        ),
        pytest.param(
            {
                "old": True,
                "containerStatuses": [
                    {"name": "trainer", "state": {"terminated": {"exitCode": 0, "finishedAt": NOON}}},
                    {"name": "shipper", "state": {"running": {}}},
                ],
            },
            "to continue: kubectl delete job relay-mini",
            True,
            id="a sidecar that does not end",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {"name": "trainer", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "shipper", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}},
                ]
            },
            "cannot start: ErrImagePull: no such image",
            True,
            id="a sidecar that cannot start after the trainer has finished",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {"name": "trainer", "state": {"running": {}}},
                    {"name": "shipper", "state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}},
                ]
            },
            "container shipper of pod relay-mini",
            False,
            id="a sidecar that cannot start while the trainer runs",
        ),
        pytest.param(
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
                ]
            },
            "is waiting for a node: 0/1 nodes",
            False,
            id="no free GPU",
        ),
        pytest.param(
            {
                "containerStatuses": [
                    {
                        "name": "trainer",
                        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
                    }
                ]
            },
            "cannot start: ImagePullBackOff: no such image",
            True,
            id="a wrong image",
        ),
        pytest.param(
            {
                "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
                "initContainerStatuses": [
                    {"name": "init", "state": {"waiting": {"reason": "CreateContainerConfigError"}}}
                ],
            },
            "container init of pod relay-mini",
            True,
            id="an init container without its Secret",
        ),
        pytest.param(
            {
                "containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}],
                "initContainerStatuses": [{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            },
            "container proxy of pod relay-mini",
            True,
            id="a sidecar that crashes again and again before the trainer starts",
        ),
    ],
)
def test_the_note_on_a_pod_says_what_it_waits_for(status: dict[str, Any], want_words: str, want_stuck: bool):
    pod = a_pod(a_job(PLAN, "mini"), phase="Pending")
    now = datetime(2026, 1, 1, 12, 30 if status.pop("old", False) else 1, tzinfo=UTC)
    pod["status"] |= status
    seen = parse_pod(pod)
    note = describe_pod(seen, now=now)
    assert note is not None
    assert want_words in note.message
    assert note.needs_user is want_stuck
