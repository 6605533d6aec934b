"""What reconcile makes of `spec.evidence`: controls beside the chain, and a verdict that no failed control prevents."""

from __future__ import annotations

from typing import Any

import pytest

from chain_builders import CHAIN_UID, a_committed_job, a_job, a_plan, a_pod, retrying
from deciding import a_failed_job, created, decide, entry
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.status import ChainStatus, Condition
from distillchain_api.resource.teacher_pass import TeacherPass
from distillchain_operator.actions import Decision, DeleteJob, SetSuspend
from distillchain_operator.chain_key import ChainKey
from distillchain_operator.finished import has_succeeded
from distillchain_operator.observed import observe
from distillchain_operator.reconcile import running_pod
from distillchain_operator.stored_status import parse_status

Object = dict[str, Any]
CONTROLS = ["tiny-direct-s1", "tiny-s2", "tiny-direct-s2"]


def a_plan_with_evidence(
    parallel: int = 1, *, seeds: int = 2, controls: tuple[str, ...] = ("Direct",), **more: Any
) -> Plan:
    """mini and tiny, and Direct with two seeds beside them."""
    evidence = {"controls": list(controls), "seeds": seeds}
    return a_plan(evidence=evidence, maxParallelJobs=parallel, **more)


def with_pass(plan: Plan) -> Plan:
    """The plan of the same chain, in which a Job of its own asks the teacher of tiny."""
    mini, tiny = plan.chain.spec.stages
    stages = [mini, tiny.model_copy(update={"teacher_pass": TeacherPass()})]
    spec = plan.chain.spec.model_copy(update={"stages": stages})
    return build_plan(plan.chain.model_copy(update={"spec": spec}))


def ready(decision: Decision) -> Condition:
    return next(condition for condition in decision.status.conditions if condition.type == "EvidenceReady")


class Cluster:
    """Jobs and pods that exist, and the status as it was written last."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.status = plan, ChainStatus()
        self.jobs: dict[str, Object] = {}
        self.pods: dict[str, Object] = {}

    def add(self, job: Object, pod: Object | None = None) -> None:
        name = job["metadata"]["name"]
        self.jobs[name] = job
        if pod is not None:
            self.pods[name] = pod

    def commit(self, *stages: str, **more: Any) -> Decision:
        for stage in stages:
            self.add(*a_committed_job(self.plan, stage, **more))
        return self.look()

    def fail(self, stage: str, failure_class: FailureClass = FailureClass.DATA_INVALID) -> Decision:
        self.add(*a_failed_job(self.plan, stage, failure_class))
        return self.look()

    def retry(self, stage: str) -> Decision:
        """`distillchain retry`: the operator deletes the Job that failed, and creates another one at its next look."""
        self.ask_for(stage)
        self.delete(stage)
        return self.look()

    def ask_for(self, stage: str) -> Decision:
        """The first look after `distillchain retry`."""
        self.plan = retrying(self.plan, stage, token=f"{stage} {len(self.jobs)}")
        return self.look()

    def delete(self, stage: str) -> None:
        for name, job in list(self.jobs.items()):
            if job["metadata"]["labels"]["distillchain.io/stage"] == stage:
                del self.jobs[name]
                self.pods.pop(name, None)

    def look(self) -> Decision:
        decision = decide(self.plan, *self.jobs.values(), pods=tuple(self.pods.values()), previous=self.status)
        self.status = decision.status
        return decision


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
