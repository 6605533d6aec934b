"""Chains from start to end on a real API server: order, failures, retries, suspension and killed operators."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chain_builders import a_commit, a_document, a_failure
from cluster.controlplane import ControlPlane
from distillchain_api.failures import FailureClass
from relay import MOMENT, RETRY_DEADLINE_S, Relay, container_status

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("operator")]


def test_two_stages_run_in_order_and_applying_the_chain_again_runs_nothing(relay: Relay):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    relay.wait("mini running", lambda: relay.stage("mini").get("phase") == "Running")
    assert relay.jobs("tiny") == []
    assert relay.stage("tiny")["message"] == "waiting for mini to commit"

    relay.commit("mini", accuracy=0.88, parameters=11_000_000)
    relay.commit("tiny", accuracy=0.81, parameters=4_000_000)
    status = relay.wait_for_phase("Succeeded")

    assert (status["stage"], status["metric"]) == ("2/2", "0.8100")
    assert status["result"]["retention"] == "0.8804"
    assert status["result"]["compression"] == "5.7"
    relay.kubectl("wait", "dchain/relay", "--for=condition=Succeeded", "--timeout=1s")
    relay.kubectl("wait", "dchain/relay", "--for=condition=Ready", "--timeout=1s")
    relay.wait("the last event", lambda: "ChainSucceeded" in relay.events())
    want_events = ["StageStarted", "StageCommitted", "StageStarted", "StageCommitted", "ChainSucceeded"]
    assert sorted(relay.events()) == sorted(want_events)

    before = relay.chain()["metadata"]["resourceVersion"]
    relay.kubectl("delete", "jobs", "--all", "--wait")
    relay.apply(a_document())
    relay.operator.kill()  # on its start it lists all chains
    relay.operator.start()
    relay.wait_for_operator()
    assert relay.jobs() == []
    assert relay.chain()["metadata"]["resourceVersion"] == before  # not even the status was written
    assert sorted(relay.events()) == sorted(want_events)


def test_a_fatal_exit_code_fails_the_chain_at_once_with_the_trainers_message(relay: Relay):
    relay.apply(a_document())
    pod = relay.wait_for_pod("mini")
    sentence = "teacher hf://org/teacher: accuracy 0.612 is under spec.teacher.gate.minMetric 0.9; fine-tune it"
    answer = a_failure(relay.planned("mini"), FailureClass.GATE_NOT_MET, sentence)
    relay.end(pod, exit_code=68, message=answer.to_json(), reason="Error")

    status = relay.wait_for_phase("Failed")
    assert status["message"] == f"mini: {sentence}"
    assert relay.stage("mini")["failureClass"] == "GateNotMet"
    assert relay.wait_for_condition("Stalled")["reason"] == "GateNotMet"
    assert len(relay.pods("mini")) == 1  # no retry
    assert sentence in relay.kubectl("get", "dchain")
    relay.wait("the event", lambda: "StageFailed" in relay.events())
    assert sentence in relay.kubectl("describe", "dchain", "relay")
    (event,) = relay.cluster.get("events", "-n", relay.namespace, "--field-selector=reason=StageFailed")["items"]
    assert event["metadata"]["annotations"] == {
        "distillchain.io/stage": "mini",
        "distillchain.io/job": relay.jobs("mini")[0]["metadata"]["name"],
        "distillchain.io/failure-class": "GateNotMet",
    }

    relay.kubectl("delete", "job", relay.jobs("mini")[0]["metadata"]["name"])
    relay.wait_for_operator()
    assert (relay.jobs(), relay.status()) == ([], status), "a stage that failed stays so without its Job"

    relay.retry()
    relay.commit("mini")
    relay.wait_for_pod("tiny")


def test_an_evicted_and_an_interrupted_pod_are_replaced_and_not_counted(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    first = relay.wait_for_pod("mini")
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    relay.end(first, exit_code=137, reason="Error", conditions=[disrupted])
    second = relay.wait_for_pod("mini", deadline_s=RETRY_DEADLINE_S)
    assert second != first
    relay.end(second, exit_code=75, reason="Error")
    third = relay.wait_for_pod("mini", deadline_s=RETRY_DEADLINE_S)
    assert third not in (first, second)
    relay.kubectl("delete", "pod", first, second)  # as after an eviction
    relay.commit("mini")
    status = relay.wait_for_phase("Succeeded")
    assert status["stages"][0]["attempt"] == 3
    assert len(relay.jobs()) == 1


def test_a_pod_that_ends_with_exit_code_75_every_second_is_not_replaced_for_ever(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    pods: set[str] = set()

    def is_paused() -> bool:
        for pod in relay.pods("mini"):
            name = pod["metadata"]["name"]
            if pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"]:
                pods.add(name)
                relay.end(name, exit_code=75, reason="Error")
        return bool(relay.stage("mini").get("nextStartAt"))

    relay.wait("the pause", is_paused, deadline_s=60)
    assert 6 <= len(pods) <= 9  # the Job controller may create some more before the operator sees the sixth
    relay.wait("no Job and no pod", lambda: not relay.jobs() and not relay.pods())
    assert relay.stage("mini")["restartPauses"] == 1
    relay.wait("the event", lambda: "RestartsPaused" in relay.events())


def test_a_pod_that_its_node_refuses_to_run_uses_no_retry(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    why = "Pod was rejected: Node didn't have enough resource: cpu"
    relay.write_pod_status(pod, phase="Failed", reason="OutOfcpu", message=why)
    relay.wait("the pause", lambda: relay.stage("mini").get("nextStartAt"))
    stage = relay.stage("mini")
    assert stage["phase"] == "Pending"
    assert f"refused pod {pod}: OutOfcpu: {why}" in stage["message"]
    relay.apply(a_document(template={"image": "x", "retries": 1}, stages=["mini"]))  # an edit ends the pause
    assert relay.wait_for_pod("mini") != pod


def test_a_pod_out_of_memory_is_retried_and_then_reported_as_such(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 1}))
    relay.end(relay.wait_for_pod("mini"), exit_code=137, reason="OOMKilled")
    relay.wait("the crash in the message", lambda: "OOMKilled" in relay.stage("mini").get("message", ""))
    assert relay.stage("mini")["phase"] == "Running"
    relay.end(relay.wait_for_pod("mini", deadline_s=RETRY_DEADLINE_S), exit_code=137, reason="OOMKilled")
    status = relay.wait_for_phase("Failed")
    assert status["stages"][0]["failureClass"] == "OutOfMemory"
    assert "was OOMKilled (exit code 137)" in status["message"]
    assert "(the last of 2 failed attempts)" in status["message"]
    assert relay.jobs("tiny") == []


def test_a_suspended_chain_stops_its_pod_and_continues_when_resumed(relay: Relay):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    relay.apply(a_document(suspend=True))
    relay.wait_for_condition("Suspended")
    assert relay.status()["phase"] == "Suspended"
    assert relay.pods("mini") == []
    assert relay.jobs("mini")[0]["spec"]["suspend"] is True

    relay.apply(a_document())
    relay.commit("mini")
    relay.apply(a_document(suspend=True))
    relay.wait_for_phase("Suspended")
    relay.apply(a_document())
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs()) == 2
    assert {"Suspended", "Resumed"} <= set(relay.events())


def test_a_job_that_another_controller_suspends_is_not_resumed(relay: Relay):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    (job,) = relay.jobs("mini")
    name = job["metadata"]["name"]
    relay.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"suspend": true}}')
    want = f"running mini: Job {name} was suspended by another controller, which resumes it"
    relay.wait("that message", lambda: relay.status().get("message", "").startswith(want))
    relay.wait_for_operator()
    assert relay.jobs("mini")[0]["spec"]["suspend"] is True

    relay.kubectl("patch", "job", name, "--type=merge", "-p", '{"spec": {"suspend": false}}')
    relay.commit("mini")


def test_a_chain_that_is_suspended_before_its_pod_starts_does_not_fail(relay: Relay):
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    first = relay.wait_for_pod("mini")
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"], suspend=True))
    relay.wait_for_condition("Suspended")
    assert relay.pods("mini") == []
    relay.apply(a_document(template={"image": "x", "retries": 0}, stages=["mini"]))
    assert relay.wait_for_pod("mini") != first
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")


def test_retry_after_a_damaged_checkpoint_runs_the_stage_that_wrote_it_again(relay: Relay):
    relay.apply(a_document())
    relay.commit("mini")
    sentence = "s3://models/distill/stages/x/attempts/a1/model.safetensors was altered"
    answer = a_failure(relay.planned("tiny"), FailureClass.CHECKPOINT_CORRUPT, sentence)
    relay.end(relay.wait_for_pod("tiny"), exit_code=66, message=answer.to_json(), reason="Error")
    relay.wait_for_phase("Failed")
    first = relay.jobs("mini")[0]["metadata"]["uid"]

    relay.retry()
    relay.wait(
        "another Job of mini", lambda: [job["metadata"]["uid"] for job in relay.jobs("mini")] not in ([], [first])
    )
    assert relay.jobs("tiny") == []
    relay.commit("mini")
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")


def test_jobs_expire_and_their_results_stay_in_status(relay: Relay):
    relay.apply(a_document(template={"image": "x", "ttlAfterFinished": "1h"}))
    relay.commit("mini")
    answer = a_failure(relay.planned("tiny"), FailureClass.DATA_INVALID, "dev.tsv:7: 3 columns, expected 2")
    relay.end(relay.wait_for_pod("tiny"), exit_code=65, message=answer.to_json(), reason="Error")
    status = relay.wait_for_phase("Failed")
    relay.wait(
        "the TTL of both Jobs",
        lambda: [job["spec"].get("ttlSecondsAfterFinished") for job in relay.jobs()] == [3600, 3600],
    )
    for job in relay.jobs():  # the time has passed
        patch = json.dumps({"spec": {"ttlSecondsAfterFinished": 0}})
        relay.kubectl("patch", "job", job["metadata"]["name"], "--type=merge", "-p", patch)
    relay.wait("the Jobs to be gone", lambda: not relay.jobs() and not relay.pods())
    relay.wait_for_operator()
    assert (relay.status(), relay.jobs()) == (status, [])

    relay.retry()
    relay.commit("tiny")
    assert relay.wait_for_phase("Succeeded")["stages"][0] == status["stages"][0]


def test_a_chain_is_trained_again_from_a_stage_whose_commit_is_discarded(relay: Relay, tmp_path: Path):
    relay.apply(a_document(storage={"uri": f"file://{tmp_path}"}))
    for stage in ("mini", "tiny"):
        manifest = tmp_path / "stages" / relay.planned(stage).digest / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text("{}")
        relay.commit(stage)
    relay.wait_for_phase("Succeeded")
    before = {job["metadata"]["uid"] for job in relay.jobs()}

    relay.retry("--from", "mini", "--discard")
    assert not list(tmp_path.glob("stages/*/manifest.json"))
    assert len(list(tmp_path.glob("stages/*/discarded/*.json"))) == 2
    relay.commit("mini")
    assert relay.stage("tiny")["phase"] == "Running"
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert not before & {job["metadata"]["uid"] for job in relay.jobs()}
    relay.wait_for_operator()
    assert relay.status()["phase"] == "Succeeded", "a request is handled once"


def test_a_timeout_counts_from_the_start_of_the_trainer(relay: Relay):
    relay.apply(a_document(stages=["mini"], template={"image": "x", "timeout": "2s"}))
    pod = relay.wait_for_pod("mini")
    time.sleep(3)
    assert relay.stage("mini")["phase"] == "Running", "its pod waits for a node"

    relay.run(pod, started_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    status = relay.wait_for_phase("Failed")
    assert status["message"].startswith("mini: ran longer than its timeout of 2 s")
    assert relay.stage("mini")["failureClass"] == "DeadlineExceeded"
    relay.wait("the Job to be gone", lambda: not relay.jobs() and not relay.pods())

    relay.retry()
    assert relay.wait_for_pod("mini") != pod
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")


def test_after_the_last_stage_a_job_whose_sidecar_does_not_end_is_deleted(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    pod = relay.wait_for_pod("mini")
    ended = {"exitCode": 0, "message": a_commit(relay.planned("mini")).to_json(), "finishedAt": MOMENT}
    sidecar = container_status({"running": {}}) | {"name": "shipper"}
    relay.write_pod_status(pod, phase="Running", containerStatuses=[container_status({"terminated": ended}), sidecar])
    relay.wait_for_phase("Succeeded")
    relay.wait("the Job and its pod gone", lambda: not relay.jobs() and not relay.pods())
    assert relay.status()["phase"] == "Succeeded"


def test_deleting_a_chain_deletes_its_jobs_and_pods(relay: Relay):
    relay.apply(a_document())
    relay.wait_for_pod("mini")
    relay.kubectl("delete", "dchain", "relay", "--wait=false")
    relay.wait("Jobs and pods gone", lambda: not relay.jobs() and not relay.pods(), deadline_s=60)
    relay.wait("the chain gone", lambda: not relay.cluster.get("dchain", "-n", relay.namespace)["items"])


def test_a_recreated_chain_needs_the_user_while_a_job_of_the_deleted_one_has_no_owner(relay: Relay):
    relay.apply(a_document())
    relay.wait_for_pod("mini")
    old = relay.chain()["metadata"]["uid"]
    relay.kubectl("delete", "dchain", "relay", "--cascade=orphan")
    orphan = relay.jobs("mini")[0]["metadata"]["name"]
    relay.apply(a_document())
    stalled = relay.wait_for_condition("Stalled")
    assert f"waiting for Job {orphan} to be deleted: no chain controls it" in stalled["message"]
    assert relay.chain()["metadata"]["uid"] != old
    relay.kubectl("delete", "job", orphan)
    relay.commit("mini")


def test_an_operator_that_is_killed_during_a_stage_finds_its_commit_and_creates_no_second_job(relay: Relay):
    relay.apply(a_document())
    uids = {}
    for stage in ("mini", "tiny"):
        pod = relay.wait_for_pod(stage)
        uids[stage] = relay.jobs(stage)[0]["metadata"]["uid"]
        relay.operator.kill()
        relay.end(pod, exit_code=0, message=a_commit(relay.planned(stage)).to_json())  # while no operator runs
        relay.operator.start()
        relay.wait(f"{stage} committed", lambda name=stage: relay.stage(name).get("phase") == "Committed")
    relay.wait_for_phase("Succeeded")
    assert {stage: [job["metadata"]["uid"] for job in relay.jobs(stage)] for stage in uids} == {
        stage: [uid] for stage, uid in uids.items()
    }


def test_a_second_job_that_another_operator_created_does_not_outlive_the_commit_of_its_stage(relay: Relay):
    relay.apply(a_document())
    pod = relay.wait_for_pod("mini")
    relay.operator.kill()
    (job,) = relay.jobs("mini")
    second = {key: job["metadata"][key] for key in ("labels", "annotations", "ownerReferences", "namespace")}
    spec = {key: value for key, value in job["spec"].items() if key != "selector"}
    labels = spec["template"]["metadata"]["labels"]  # without those that the API server adds
    spec["template"]["metadata"]["labels"] = {key: labels[key] for key in labels if key.startswith("distillchain.io/")}
    relay.cluster.apply(job | {"metadata": second | {"name": "second"}, "spec": spec, "status": {}})
    relay.end(pod, exit_code=0, message=a_commit(relay.planned("mini")).to_json())
    relay.wait("the pod of the second Job", lambda: len(relay.pods("mini")) == 2)
    relay.operator.start()
    relay.wait_for_pod("tiny")
    assert [left["metadata"]["uid"] for left in relay.jobs("mini")] == [job["metadata"]["uid"]]
    assert [left["metadata"]["name"] for left in relay.pods("mini")] == [pod]


def test_an_operator_that_is_killed_while_it_creates_a_job_ends_with_one_job(relay: Relay):
    relay.apply(a_document(stages=["mini"]))
    # Usually before the status is written. test_reconcile_any_order.py kills it at every other point.
    relay.wait("a Job", lambda: relay.jobs("mini"))
    relay.operator.kill()
    uid = relay.jobs("mini")[0]["metadata"]["uid"]
    relay.operator.start()
    relay.commit("mini")
    relay.wait_for_phase("Succeeded")
    assert [job["metadata"]["uid"] for job in relay.jobs()] == [uid]


def test_an_outage_of_the_api_server_is_survived(relay: Relay, control_plane: ControlPlane):
    relay.apply(a_document())
    relay.run(relay.wait_for_pod("mini"))
    control_plane.restart_apiserver()
    relay.commit("mini")
    relay.commit("tiny")
    relay.wait_for_phase("Succeeded")
    assert len(relay.jobs()) == 2
