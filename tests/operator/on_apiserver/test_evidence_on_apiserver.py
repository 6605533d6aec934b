"""A chain with evidence on a real API server: a killed operator, a control that fails, suspension, and edits halfway."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import a_document, a_failure
from distillchain_api.failures import FailureClass
from relay import Relay

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]

EVIDENCE = {"controls": ["Direct", "FromRoot"], "seeds": 2}


def a_chain(*, seeds: int = 2, parallel: int = 1, **spec: Any) -> dict[str, Any]:
    return a_document(evidence={**EVIDENCE, "seeds": seeds}, maxParallelJobs=parallel, **spec)


def ready(relay: Relay) -> dict[str, Any]:
    conditions = relay.status().get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == "EvidenceReady"), {})


def jobs(relay: Relay) -> set[str]:
    return {job["metadata"]["labels"]["distillchain.io/stage"] for job in relay.jobs()}


def open_jobs(relay: Relay) -> list[dict[str, Any]]:
    return [job for job in relay.jobs() if not job["status"].get("succeeded")]


def test_controls_follow_the_chain_one_at_a_time_and_survive_a_killed_operator(relay: Relay):
    relay.apply(a_chain())
    relay.commit("mini", accuracy=0.88)
    relay.wait_for_pod("tiny")
    assert jobs(relay) == {"mini", "tiny"}
    relay.commit("tiny", accuracy=0.85)
    status = relay.wait_for_phase("Succeeded")
    assert status["stage"] == "2/2"

    for number, name in enumerate(["tiny-direct-s1", "tiny-from-root-s1", "tiny-s2", "tiny-direct-s2"]):
        pod = relay.wait_for_pod(name)
        # The next pod starts once the last one has answered, and its Job may count that a moment later.
        relay.wait("a single Job that runs", lambda: len(open_jobs(relay)) == 1)
        if number % 2:
            relay.operator.kill()
            relay.run(pod)
            relay.operator.start()
        relay.commit(name)
    relay.commit("tiny-from-root-s2")
    # Without an operator the answer waits in the pod.
    verdict = relay.wait_for_pod("evidence")
    relay.operator.kill()
    relay.run(verdict)
    relay.operator.start()
    relay.commit("evidence")

    relay.wait_for_condition("EvidenceReady")
    relay.kubectl("wait", "dchain/relay", "--for=condition=EvidenceReady", "--timeout=1s")
    status = relay.status()
    assert status["result"]["evidence"]["outcome"] == "NotWorthIt"
    assert [control["control"] for control in status["result"]["evidence"]["controls"]] == ["Direct", "FromRoot"]
    relay.wait("the event", lambda: "EvidenceReady" in relay.events())
    before = relay.chain()["metadata"]["resourceVersion"]
    relay.wait_for_operator()
    assert relay.chain()["metadata"]["resourceVersion"] == before, "a finished chain is left alone"
    assert len(jobs(relay)) == 8


def test_a_control_that_fails_is_left_out_until_it_is_retried(relay: Relay):
    relay.apply(a_chain(parallel=9))
    names = ["tiny-from-root-s1", "tiny-direct-s2", "tiny-from-root-s2"]
    pod = relay.wait_for_pod("tiny-direct-s1")
    answer = a_failure(relay.planned("tiny-direct-s1"), FailureClass.DATA_INVALID, "row 7 has no label")
    relay.end(pod, exit_code=65, message=answer.to_json(), reason="Error")
    relay.wait("its failure", lambda: relay.stage("tiny-direct-s1").get("phase") == "Failed")
    for name in ("mini", "tiny", "tiny-s2", *names):
        relay.commit(name)
    relay.commit("evidence", without=["tiny-direct-s1"])

    relay.wait_for_phase("Succeeded")
    want = "tiny-direct-s1 failed: row 7 has no label; to try again: distillchain retry relay. FromRoot is as good as"
    relay.wait("the reason", lambda: ready(relay)["message"].startswith(want))
    assert (ready(relay)["status"], ready(relay)["reason"]) == ("False", "Failed")
    relay.kubectl("wait", "dchain/relay", "--for=condition=Ready", "--timeout=1s")
    assert relay.status()["result"]["evidence"]["missing"] == ["tiny-direct-s1 failed"]

    relay.retry()
    relay.commit("tiny-direct-s1")
    relay.commit("evidence")
    assert relay.wait_for_condition("EvidenceReady")["reason"] == "Ready"


def test_suspension_stops_controls_and_edits_halfway_keep_what_is_committed(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    before = relay.stage("tiny")

    relay.apply(a_chain(parallel=2))  # evidence is added to a chain that has succeeded
    relay.commit("tiny-direct-s1")
    pod = relay.wait_for_pod("tiny-from-root-s1")
    relay.run(pod)
    relay.apply(a_chain(parallel=2, suspend=True))
    relay.wait("the suspension", lambda: ready(relay).get("reason") == "Suspended")
    relay.wait("no pod", lambda: not [p for p in relay.pods() if p["status"]["phase"] in ("Pending", "Running")])
    assert relay.status()["phase"] == "Succeeded"

    relay.apply(a_chain(seeds=3, parallel=9))  # resumed, with another seed
    for name in ("tiny-from-root-s1", "tiny-s2", "tiny-direct-s2", "tiny-from-root-s2"):
        relay.commit(name)
    for name in ("tiny-s3", "tiny-direct-s3", "tiny-from-root-s3", "evidence"):
        relay.commit(name)
    relay.wait_for_condition("EvidenceReady")
    assert relay.stage("tiny") == before

    relay.apply(a_document())  # and removed
    relay.wait("no evidence", lambda: not relay.status().get("evidence"))
    status = relay.wait_for_phase("Succeeded")
    assert "EvidenceReady" not in [condition["type"] for condition in status["conditions"]]
    assert status["result"].get("evidence") is None
    assert relay.stage("tiny") == before
