"""The chain ends well for any order of events and any crash of the operator, whatever the graph of its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chain_builders import (
    CHAIN_UID,
    a_commit,
    a_failure,
    a_job,
    a_plan,
    a_pod,
)
from deciding import NOON, created, decide
from distillchain_api.evidence_vertices import without_failed
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, PlannedStage
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.decide.actions import Action, CreateJob, DeleteJob
from distillchain_operator.decide.reconcile import reconcile
from distillchain_operator.jobs.labels import digest_label
from distillchain_operator.jobs.parsing import observe
from distillchain_operator.jobs.stage_job import JobDefaults
from distillchain_operator.jobs.wanted_jobs import WantedJobs

MOMENT = "2026-01-01T12:00:00Z"


class World:
    """An API server and a Job controller in memory, whose steps hypothesis orders.

    The real ones cannot be made to crash between two given lines.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.status = ChainStatus()
        self.started: list[str] = []
        self.answered: set[str] = set()
        self.failed: set[str] = set()

    def reconcile(self, *, crash_after: int | None) -> None:
        """One reconcile, with the operator killed after so many of its writes."""
        observed = observe(chain_uid=CHAIN_UID, jobs=self.jobs.values(), pods=self.pods.values())
        decision = reconcile(
            self.plan, observed, previous=self.status, now=NOON, wanted=WantedJobs(self.plan, JobDefaults())
        )
        writes = [*decision.actions, decision.status]
        for write in writes[:crash_after]:
            if isinstance(write, ChainStatus):
                self.status = write
            else:
                self.perform(write)

    def perform(self, action: Action) -> None:
        if isinstance(action, CreateJob):
            name = action.job["metadata"]["name"]
            if name not in self.jobs:  # else 409
                stage = self.plan.stage(action.stage)
                assert stage is not None
                needs = set(stage.needs) - (self.failed if stage.is_verdict else set())
                assert needs <= self.answered, "started before what it needs was committed"
                if stage.is_evidence and self.plan.max_parallel_jobs == 1:
                    assert {each.name for each in self.plan.stages} <= self.answered, "started before the chain ended"
                self.jobs[name] = {**a_job(self.plan, action.stage), "metadata": job_metadata(action.job)}
                self.started.append(action.stage)
        elif isinstance(action, DeleteJob):
            self.jobs.pop(action.name, None)
            self.pods = {key: pod for key, pod in self.pods.items() if not key.startswith(action.name)}

    def make_pod(self) -> None:
        for name, job in self.jobs.items():
            if name not in self.pods and "conditions" not in job["status"]:
                self.pods[name] = a_pod(job)
                job["status"]["active"] = 1

    def delete_a_job(self) -> None:
        """A user does, as kubectl does it: the Job is gone at once, and its pod saves for a while."""
        for name in [name for name in self.pods if name in self.jobs][:1]:
            pod = self.pods.pop(name)
            del self.jobs[name]
            if pod["status"]["phase"] == "Running":
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:02:00Z"
                pod["metadata"]["ownerReferences"][0]["uid"] += "-deleted"
                self.pods[f"stopping {name}"] = pod

    def end_stopping_pods(self) -> None:
        self.pods = {key: pod for key, pod in self.pods.items() if "deletionTimestamp" not in pod["metadata"]}

    def commit_pod(self) -> None:
        """The first of the pods that run ends."""
        for name, pod in list(self.pods.items())[::-1]:
            job = self.jobs.get(name)
            if job is not None and pod["status"]["phase"] == "Running":
                stage = self.stage_of(job)
                self.answered.add(stage.name)
                self.pods[name] = a_pod(job, phase="Succeeded", exit_code=0, message=a_commit(stage).to_json())
                return

    def fail_pod(self) -> None:
        """A control fails for good, and its Job with it."""
        for name, pod in self.pods.items():
            job = self.jobs.get(name)
            if job is None or pod["status"]["phase"] != "Running" or "conditions" in job["status"]:
                continue
            stage = self.stage_of(job)
            if stage.is_evidence and not stage.is_verdict:
                self.failed.add(stage.name)
                answer = a_failure(stage, FailureClass.DATA_INVALID, "it failed")
                self.pods[name] = a_pod(job, phase="Failed", exit_code=66, message=answer.to_json())
                condition = {
                    "type": "Failed",
                    "status": "True",
                    "reason": "PodFailurePolicy",
                    "lastTransitionTime": MOMENT,
                }
                job["status"] = {"failed": 1, "conditions": [condition]}
                return

    def stage_of(self, job: dict[str, Any]) -> PlannedStage:
        """The vertex of a Job; a verdict is on the students that its digest says."""
        stage = self.plan.stage(job["metadata"]["labels"]["distillchain.io/stage"])
        assert stage is not None
        left = without_failed(stage, self.failed)
        return left if job["metadata"]["labels"]["distillchain.io/digest"] == digest_label(left.digest) else stage

    def complete_job(self) -> None:
        for name, pod in self.pods.items():
            if pod["status"]["phase"] == "Succeeded" and name in self.jobs:
                done = {"type": "Complete", "status": "True", "lastTransitionTime": MOMENT}
                self.jobs[name]["status"] = {"succeeded": 1, "conditions": [done]}

    def forget_finished_jobs(self) -> None:
        """A TTL, or a user who deletes them after the status was written."""
        for entry in self.status.entries:
            if entry.phase == "Committed" and entry.job:
                self.jobs.pop(entry.job, None)
                self.pods.pop(entry.job, None)


def job_metadata(manifest: dict[str, Any]) -> dict[str, Any]:
    """As the API server fills it in."""
    metadata = manifest["metadata"]
    return metadata | {"uid": f"uid-of-{metadata['name']}", "creationTimestamp": MOMENT}


STEPS = st.one_of(
    st.sampled_from(["make_pod", "commit_pod", "complete_job", "forget_finished_jobs"]),
    st.tuples(st.just("reconcile"), st.sampled_from([None, 0, 1, 2])),
)


LOOK = ("reconcile", None)
DELETING_STEPS = st.one_of(STEPS, st.sampled_from(["delete_a_job", "end_stopping_pods"]))
FAILING_STEPS = st.one_of(STEPS, st.just("fail_pod"))
NAMES = ["mini", "tiny", "femto", "nano", "pico"]
PLAN = a_plan(stages=NAMES[:3])


@st.composite
def graphs(draw: st.DrawFn) -> Plan:
    """Plans in which a vertex needs any of those before it: chains, branches, joins, and vertices that need nothing."""
    count = draw(st.integers(1, len(NAMES)))
    plan = a_plan(stages=NAMES[:count])
    needs = [draw(st.sets(st.sampled_from(NAMES[:at]))) if at else set() for at in range(count)]
    stages = tuple(
        replace(stage, needs=tuple(sorted(needed)), priority=draw(st.integers(0, 2)))
        for stage, needed in zip(plan.stages, needs, strict=True)
    )
    return replace(plan, stages=stages, max_parallel_jobs=draw(st.integers(1, 3)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=40))
def test_any_order_of_events_and_crashes_creates_one_job_per_stage_in_order(steps: list[Any]):
    world = run_to_the_end(PLAN, steps)
    assert world.started == [stage.name for stage in PLAN.stages]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=graphs(), steps=st.lists(STEPS, max_size=40))
def test_any_graph_creates_one_job_per_vertex_after_those_that_it_needs(plan: Plan, steps: list[Any]):
    world = run_to_the_end(plan, steps)
    assert sorted(world.started) == sorted(stage.name for stage in plan.stages)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=graphs(), steps=st.lists(DELETING_STEPS, min_size=10, max_size=40))
@example(plan=replace(PLAN, max_parallel_jobs=2), steps=[LOOK, "make_pod", "delete_a_job", LOOK, "make_pod"])
def test_a_vertex_has_one_pod_at_a_time_whichever_jobs_a_user_deletes(plan: Plan, steps: list[Any]):
    world = run_to_the_end(plan, steps)
    assert world.answered == {stage.name for stage in plan.stages}


@st.composite
def chains_with_evidence(draw: st.DrawFn) -> Plan:
    """Chains of one or two stages, with controls of the last or of every stage."""
    evidence = {
        "controls": draw(st.sampled_from([["Direct"], ["Direct", "FromRoot"]])),
        "seeds": 2,
        "stages": draw(st.sampled_from(["Last", "Every"])),
    }
    return a_plan(stages=NAMES[: draw(st.integers(1, 2))], evidence=evidence, maxParallelJobs=draw(st.integers(1, 4)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=chains_with_evidence(), steps=st.lists(FAILING_STEPS, max_size=60))
def test_controls_may_fail_at_any_moment_and_the_chain_succeeds_with_a_verdict_on_the_others(
    plan: Plan, steps: list[Any]
):
    world = run_to_the_end(plan, steps)

    students = sorted(name for name in world.started if name != "evidence")
    assert students == sorted(stage.name for stage in plan.vertices if not stage.is_verdict), "each once"
    ready = next(condition for condition in world.status.conditions if condition.type == "EvidenceReady")
    assert ready.reason == ("Failed" if world.failed else "Ready")
    left = without_failed(plan.evidence[-1], world.failed)
    order = left.work_order.evidence
    assert order is not None
    result = world.status.result
    assert result is not None
    assert (result.evidence is not None) == order.can_be_judged
    assert {entry.name for entry in world.status.evidence if entry.phase == "Failed"} == world.failed


@pytest.mark.parametrize("parallel, want", [(1, ["tiny"]), (2, ["tiny", "femto"]), (3, ["tiny", "femto", "mini"])])
def test_ready_vertices_start_by_priority_while_slots_are_free(parallel: int, want: list[str]):
    plan = a_plan(stages=NAMES[:3])
    mini, tiny, femto = plan.stages
    graph = (replace(mini, priority=2), replace(tiny, needs=()), replace(femto, needs=(), priority=1))
    world = World(replace(plan, stages=graph, max_parallel_jobs=parallel))

    world.reconcile(crash_after=None)

    assert world.started == want
    assert [entry.name for entry in world.status.stages if entry.phase == "Running"] == sorted(want, key=NAMES.index)


def test_a_free_slot_starts_no_second_job_of_a_stage_whose_pod_still_stops():
    plan = replace(a_plan(stages=["mini"]), max_parallel_jobs=3)
    pod = a_pod(a_job(plan, "mini"))
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    job = a_job(plan, "mini")
    job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"

    assert created(decide(plan, job, pods=(pod,))) == []


def test_a_free_slot_starts_no_second_job_of_a_stage_whose_job_is_gone_before_its_pod():
    plan = a_plan(stages=["mini"], maxParallelJobs=2)
    pod = a_pod(a_job(plan, "mini"))
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:02:00Z"

    decision = decide(plan, pods=(pod,))

    assert created(decision) == []
    assert f"waiting for pod {pod['metadata']['name']} of Job" in str(decision.status.stages[0].message)


def run_to_the_end(plan: Plan, steps: list[Any]) -> World:
    """The world after these steps, and then after as many as the chain needs."""
    world = World(plan)
    for step in steps:
        if isinstance(step, tuple):
            world.reconcile(crash_after=step[1])
        else:
            getattr(world, step)()
        pods = [pod["metadata"] for pod in world.pods.values() if pod["status"]["phase"] == "Running"]
        vertices = [metadata["labels"]["distillchain.io/stage"] for metadata in pods]
        assert len(vertices) == len(set(vertices)), "two pods of one vertex would write the same state"
        assert len(vertices) <= plan.max_parallel_jobs
    for _ in range(4 * len(plan.vertices)):  # then without further disturbance
        world.end_stopping_pods()
        world.reconcile(crash_after=None)
        world.make_pod()
        world.commit_pod()
        world.complete_job()
    world.reconcile(crash_after=None)
    assert world.status.phase == "Succeeded"
    return world
