"""What reconcile makes of `spec.evidence`: controls beside the chain, and a verdict that no failed control prevents."""

from __future__ import annotations

import pytest

from chain_builders import a_job, a_plan, a_pod
from deciding import a_failed_job, created, entry
from distillchain_api.failures import FailureClass
from distillchain_operator.caches.finished import has_succeeded
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.decide.actions import DeleteJob, SetSuspend
from distillchain_operator.status.stored import parse_status
from evidence_parts import CONTROLS, Cluster, a_plan_with_evidence, ready, with_pass


def test_with_one_job_at_a_time_controls_start_after_the_chain():
    cluster = Cluster(a_plan_with_evidence())
    first = cluster.look()
    assert created(first) == ["mini"]
    assert (
        entry(first, "tiny-direct-s1").message
        == "waiting for Job " + entry(first, "mini").job + " of stage mini to finish"
    )
    assert created(cluster.commit("mini")) == ["tiny"]

    decision = cluster.commit("tiny")

    assert created(decision) == ["tiny-direct-s1"]
    assert (decision.status.phase, decision.status.stage) == ("Succeeded", "2/2")
    assert decision.status.result is not None
    assert (ready(decision).status, ready(decision).reason) == ("False", "Running")


def test_a_pause_of_the_chain_s_next_stage_starts_no_control():
    """With one slot, it is kept for the chain while the next stage may not start yet."""
    plan = a_plan_with_evidence(template={"pendingDeadline": "1m", "image": "trainer:1"})
    cluster = Cluster(plan)
    cluster.commit("mini")
    entry_before = cluster.status.stage_named("tiny")
    assert entry_before is not None
    held = entry_before.model_copy(
        update={"phase": "Pending", "job": None, "next_start_at": "2026-01-01T12:30:00Z", "message": "a pause"}
    )
    stages = [held if each.name == "tiny" else each for each in cluster.status.stages]
    cluster.status = cluster.status.model_copy(update={"stages": stages})

    decision = cluster.look()

    assert created(decision) == []
    assert entry(decision, "tiny-direct-s1").message == "waiting for the chain to finish"


@pytest.mark.parametrize(
    "parallel, want",
    [(1, ["mini"]), (2, ["mini", "tiny-direct-s1"]), (9, ["mini", "tiny-direct-s1", "tiny-direct-s2"])],
)
def test_controls_use_spare_slots(parallel: int, want: list[str]):
    assert created(Cluster(a_plan_with_evidence(parallel)).look()) == want


def test_controls_leave_one_slot_to_the_next_stage_of_the_chain():
    cluster = Cluster(a_plan_with_evidence(2))
    cluster.look()
    cluster.add(a_job(cluster.plan, "tiny-direct-s1"))

    assert created(cluster.commit("mini")) == ["tiny"]


def test_the_chain_has_succeeded_before_its_evidence_and_the_verdict_comes_last():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny")
    before = cluster.commit("tiny-s2", "tiny-direct-s1")
    assert created(before) == ["tiny-direct-s2"]
    assert entry(before, "evidence").message == "waiting for tiny-direct-s2 to commit"
    assert created(cluster.commit("tiny-direct-s2")) == ["evidence"]

    decision = cluster.commit("evidence")

    assert decision.actions == ()
    assert (ready(decision).status, ready(decision).reason) == ("True", "Ready")
    assert ready(decision).message == "Direct is as good as the chain"
    result = decision.status.result
    assert result is not None
    assert result.evidence is not None
    assert (result.evidence.outcome, result.evidence.control) == ("NotWorthIt", "Direct")
    assert [control.difference for control in result.evidence.controls] == ["0.0020"]
    assert entry(decision, "evidence").model is None, "it makes none"
    assert [each.name for each in decision.status.stages] == ["mini", "tiny"]


def test_a_failed_control_is_left_out_and_said_with_what_to_do():
    cluster = Cluster(a_plan_with_evidence(9, controls=("Direct", "FromRoot")))
    cluster.commit("mini", "tiny", "tiny-s2", "tiny-from-root-s1", "tiny-from-root-s2", "tiny-direct-s2")
    failed = cluster.fail("tiny-direct-s1")
    assert (failed.status.phase, created(failed)) == ("Succeeded", ["evidence"])

    decision = cluster.commit("evidence", without=["tiny-direct-s1"])

    assert (decision.status.phase, ready(decision).status, ready(decision).reason) == ("Succeeded", "False", "Failed")
    assert ready(decision).message == (
        "tiny-direct-s1 failed: it failed; to try again: distillchain retry relay. FromRoot is as good as the chain"
    )
    assert decision.status.result is not None
    assert decision.status.result.evidence is not None
    assert decision.status.result.evidence.missing == ["tiny-direct-s1 failed"]
    conditions = {condition.type: condition.status for condition in decision.status.conditions}
    assert (conditions["Ready"], conditions["Stalled"]) == ("True", "False")


def test_no_control_starts_for_a_chain_that_failed():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.add(*a_failed_job(cluster.plan, "mini", FailureClass.DATA_INVALID))

    decision = cluster.look()

    assert created(decision) == []
    assert (decision.status.phase, ready(decision).reason) == ("Failed", "ChainFailed")
    assert entry(decision, "tiny-direct-s1").message == (
        "waiting for the chain, which has failed: there is no student to compare"
    )


def test_suspend_stops_controls_of_a_chain_that_has_succeeded_and_resume_continues():
    plan = a_plan_with_evidence()
    cluster = Cluster(plan)
    cluster.commit("mini", "tiny")
    job = a_job(plan, "tiny-direct-s1")
    cluster.add(job, a_pod(job))
    cluster.plan = a_plan_with_evidence(suspend=True, generation=2)

    stopped = cluster.look()

    assert [action.suspend for action in stopped.actions if isinstance(action, SetSuspend)] == [True]
    assert (stopped.status.phase, ready(stopped).reason) == ("Succeeded", "Suspended")
    assert entry(stopped, "tiny-s2").phase == "Suspended"
    suspended = a_job(plan, "tiny-direct-s1", suspended=True)
    cluster.delete("tiny-direct-s1")
    cluster.add(suspended)
    cluster.plan = a_plan_with_evidence(generation=3)
    resumed = cluster.look()
    assert [action.suspend for action in resumed.actions if isinstance(action, SetSuspend)] == [False]
    assert (ready(resumed).reason, created(resumed)) == ("Running", [])


def test_evidence_can_be_added_to_a_chain_that_has_succeeded():
    cluster = Cluster(a_plan())
    cluster.commit("mini", "tiny")
    before = {each.name: each for each in cluster.status.stages}
    cluster.plan = a_plan_with_evidence(9, generation=2)

    decision = cluster.look()

    assert created(decision) == ["tiny-direct-s1", "tiny-s2", "tiny-direct-s2"]
    assert {each.name: each for each in decision.status.stages} == before


def test_a_pass_that_only_controls_need_does_not_undo_the_success_of_the_chain():
    cluster = Cluster(a_plan())
    cluster.commit("mini", "tiny")
    cluster.plan = with_pass(a_plan(generation=2))
    assert entry(cluster.look(), "tiny-pass").phase == "Committed", "it is not needed"
    cluster.plan = with_pass(a_plan_with_evidence(9, generation=3))

    started = cluster.look()
    failed = cluster.fail("tiny-pass")

    assert created(started) == ["tiny-pass", "tiny-direct-s1", "tiny-direct-s2"]
    assert (started.status.phase, started.status.stage, ready(started).reason) == ("Succeeded", "3/3", "Running")
    assert (failed.status.phase, ready(failed).reason) == ("Succeeded", "Failed")
    assert failed.status.result is not None
    assert ready(failed).message == "tiny-pass failed: it failed; to try again: distillchain retry relay"
    assert [each.name for each in failed.status.evidence] == ["tiny-direct-s1", "tiny-s2", "tiny-direct-s2", "evidence"]


def test_evidence_can_be_removed_while_a_control_runs():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny", "tiny-s2")
    running = a_job(cluster.plan, "tiny-direct-s1")
    cluster.add(running, a_pod(running))
    cluster.look()
    cluster.plan = a_plan(generation=2)

    decision = cluster.look()

    assert [action.name for action in decision.actions if isinstance(action, DeleteJob)] == [
        running["metadata"]["name"]
    ]
    assert (decision.status.phase, decision.status.evidence) == ("Succeeded", [])
    assert [each.type for each in decision.status.conditions if each.type == "EvidenceReady"] == []


def test_more_seeds_keep_what_is_committed():
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny", *CONTROLS)
    cluster.commit("evidence")
    cluster.plan = a_plan_with_evidence(9, seeds=3, generation=2)

    decision = cluster.look()

    assert created(decision) == ["tiny-s3", "tiny-direct-s3"]
    assert [entry(decision, name).phase for name in CONTROLS] == ["Committed"] * 3
    assert (decision.status.phase, entry(decision, "evidence").phase) == ("Succeeded", "Pending")


def test_fewer_seeds_need_only_a_new_verdict():
    cluster = Cluster(a_plan_with_evidence(9, seeds=3))
    cluster.commit("mini", "tiny", *CONTROLS, "tiny-s3", "tiny-direct-s3")
    cluster.commit("evidence")
    cluster.plan = a_plan_with_evidence(9, generation=2)

    assert created(cluster.look()) == ["evidence"]


def test_a_chain_is_finished_once_its_evidence_is():
    cluster = Cluster(a_plan_with_evidence(9))

    def finished() -> bool:
        return has_succeeded({"metadata": {"generation": 1}, "status": cluster.status.to_document()})

    cluster.commit("mini", "tiny")
    assert not finished()
    cluster.commit(*CONTROLS)
    assert not finished()
    cluster.commit("evidence")
    assert finished()


def test_a_control_that_needs_the_user_says_so_and_the_chain_stays_ready():
    cluster = Cluster(a_plan_with_evidence())
    cluster.commit("mini", "tiny")
    job = a_job(cluster.plan, "tiny-direct-s1", active=1)
    pod = a_pod(job, phase="Pending")
    pod["status"]["containerStatuses"] = [
        {"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    ]
    cluster.add(job, pod)

    decision = cluster.look()

    assert ready(decision).reason == "PodRejected"
    conditions = {condition.type: condition.status for condition in decision.status.conditions}
    assert (conditions["Ready"], conditions["Stalled"]) == ("True", "False")


def test_a_control_of_a_status_that_a_later_release_wrote_keeps_what_can_be_read():
    """Without this, one unknown value would make every committed control run again."""
    cluster = Cluster(a_plan_with_evidence(9))
    cluster.commit("mini", "tiny", *CONTROLS)
    document = cluster.status.to_document()
    document["evidence"][0]["failureClass"] = "Bored"

    found = parse_status({"status": document}, ChainKey("ml", "relay"))

    assert [each.phase for each in found.evidence[:3]] == ["Committed"] * 3
    assert found.stages == cluster.status.stages
