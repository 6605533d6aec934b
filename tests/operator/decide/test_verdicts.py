"""The verdict on a chain and its controls: when it is made, made again, and what may be left out."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import CHAIN_UID, a_job, a_pod
from deciding import a_failed_job, created, entry
from distillchain_api.failures import FailureClass
from distillchain_operator.decide.actions import DeleteJob
from distillchain_operator.decide.reconcile import running_pod
from distillchain_operator.jobs.parsing import observe
from evidence_parts import CONTROLS, Cluster, a_plan_with_evidence, ready, with_pass


def test_a_control_that_is_retried_makes_the_verdict_new():
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot")))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    cluster.fail("tiny-direct-s1")
    cluster.commit("evidence", without=["tiny-direct-s1"])

    again = cluster.retry("tiny-direct-s1")

    assert created(again) == ["tiny-direct-s1"]
    assert entry(again, "evidence").phase == "Pending"
    assert again.status.result is not None
    assert again.status.result.evidence is None, "the old verdict is on other students"
    assert created(cluster.commit("tiny-direct-s1")) == ["evidence"]
    full = cluster.commit("evidence")
    assert (ready(full).reason, entry(full, "evidence").verdict.missing) == ("Ready", [])


def test_a_control_that_fails_again_keeps_the_verdict_without_it():
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot")))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    cluster.fail("tiny-direct-s1")
    cluster.commit("evidence", without=["tiny-direct-s1"])
    cluster.retry("tiny-direct-s1")

    decision = cluster.fail("tiny-direct-s1")

    assert created(decision) == []
    assert (ready(decision).reason, entry(decision, "evidence").phase) == ("Failed", "Committed")


def test_an_unfinished_verdict_on_other_students_is_deleted():
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot")))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    cluster.fail("tiny-direct-s1")
    old = a_job(cluster.plan, "evidence", without=["tiny-direct-s1"])
    cluster.add(old, a_pod(old))

    decision = cluster.retry("tiny-direct-s1")

    assert [action.name for action in decision.actions if isinstance(action, DeleteJob)] == [old["metadata"]["name"]]


def test_a_verdict_without_a_failed_control_runs_to_its_end():
    """Its digest is not that of the plan, which has all students."""
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot")))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    cluster.fail("tiny-direct-s1")
    job = a_job(cluster.plan, "evidence", without=["tiny-direct-s1"])
    cluster.add(job, a_pod(job))

    decision = cluster.look()

    assert decision.actions == ()
    assert (entry(decision, "evidence").phase, entry(decision, "evidence").job) == ("Running", job["metadata"]["name"])


def a_cluster_without_a_control(**more: Any) -> Cluster:
    """All students but one that failed are committed."""
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot"), **more))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    cluster.fail("tiny-direct-s1")
    return cluster


def test_of_two_jobs_of_a_verdict_without_a_failed_control_the_younger_one_is_deleted():
    cluster = a_cluster_without_a_control()
    first, second = (a_job(cluster.plan, "evidence", without=["tiny-direct-s1"]) for _ in range(2))
    second["metadata"] |= {"name": "another", "uid": "another", "creationTimestamp": "2026-01-01T12:00:01Z"}
    cluster.add(first)
    cluster.add(second)

    decision = cluster.look()

    assert [action.name for action in decision.actions if isinstance(action, DeleteJob)] == ["another"]


def test_the_progress_of_a_verdict_without_a_failed_control_is_read():
    cluster = a_cluster_without_a_control()
    job = a_job(cluster.plan, "evidence", without=["tiny-direct-s1"], active=1)
    pod = a_pod(job)
    observed = observe(chain_uid=CHAIN_UID, jobs=[*cluster.jobs.values(), job], pods=[*cluster.pods.values(), pod])

    found = running_pod(cluster.plan, observed)

    assert found is not None
    assert found.name == pod["metadata"]["name"]


def test_the_deadline_of_a_verdict_without_a_failed_control_is_looked_at():
    cluster = a_cluster_without_a_control(template={"pendingDeadline": "1h", "image": "trainer:1"})
    job = a_job(cluster.plan, "evidence", without=["tiny-direct-s1"], active=1)
    cluster.add(job, a_pod(job, phase="Pending"))

    assert cluster.look().look_again_s is not None


def test_nothing_is_compared_without_two_seeds_of_a_control():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-direct-s2")

    decision = cluster.fail("tiny-direct-s1")

    assert created(decision) == []
    assert (decision.status.phase, ready(decision).reason) == ("Succeeded", "Failed")
    assert entry(decision, "evidence").message == (
        "the last stage cannot be compared: two seeds of it and two of a control are needed"
    )


def test_controls_whose_pass_failed_are_left_out_and_the_verdict_comes():
    cluster = Cluster(with_pass(a_plan_with_evidence(9, controls=("Direct", "FromRoot"))))
    cluster.commit("mini", "tiny-pass", "tiny", *CONTROLS)

    decision = cluster.fail("tiny-from-root-pass")

    left_out = ["tiny-from-root-s1", "tiny-from-root-s2"]
    assert created(decision) == ["evidence"]
    judged = cluster.commit("evidence", without=left_out)
    assert (judged.status.phase, ready(judged).reason) == ("Succeeded", "Failed")
    assert judged.status.result is not None
    assert judged.status.result.evidence is not None
    assert judged.status.result.evidence.missing == ["tiny-from-root-s1, tiny-from-root-s2 failed"]
    again = cluster.retry("tiny-from-root-pass")
    assert created(again) == ["tiny-from-root-pass"]
    assert entry(again, "evidence").phase == "Pending"


def test_a_failed_verdict_does_not_fail_the_chain():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny", *CONTROLS)

    decision = cluster.fail("evidence", FailureClass.STORAGE_DENIED)

    assert (decision.status.phase, ready(decision).reason) == ("Succeeded", "Failed")
    assert ready(decision).message.startswith("evidence failed: it failed; to try again: distillchain retry relay")


@pytest.mark.parametrize("without", [[], ["tiny-direct-s1"]])
def test_a_verdict_that_finds_a_damaged_control_has_that_one_trained_again(without: list[str]):
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot")))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    cluster.fail("tiny-direct-s1") if without else cluster.commit("tiny-direct-s1")
    damaged = "tiny-from-root-s2: its manifest is missing"
    failure = FailureClass.CHECKPOINT_CORRUPT
    cluster.add(*a_failed_job(cluster.plan, "evidence", failure, sentence=damaged, without=without))
    assert ready(cluster.look()).reason == "Failed"

    decision = cluster.ask_for("evidence")

    job = next(name for name in cluster.jobs if "tiny-from-root-s2" in name)
    verdict = next(name for name in cluster.jobs if "evidence" in name)
    assert {action.name for action in decision.actions if isinstance(action, DeleteJob)} == {job, verdict}
    assert (decision.status.phase, entry(decision, "evidence").phase) == ("Succeeded", "Pending")
    cluster.delete("evidence")
    cluster.delete("tiny-from-root-s2")
    assert created(cluster.look()) == ["tiny-from-root-s2"]
    assert created(cluster.commit("tiny-from-root-s2")) == ["evidence"]


def test_a_verdict_that_finds_a_damaged_stage_of_the_chain_does_not_undo_its_success():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny", *CONTROLS)
    damaged = "tiny: its manifest is missing"
    cluster.add(*a_failed_job(cluster.plan, "evidence", FailureClass.CHECKPOINT_CORRUPT, sentence=damaged))
    cluster.look()

    decision = cluster.retry("evidence")

    assert (decision.status.phase, created(decision), len(decision.actions)) == ("Succeeded", ["evidence"], 1)
