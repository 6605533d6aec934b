"""The chain ends well for any order of events and any crash of the operator, whatever the graph of its plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain_builders import (
    CHAIN_UID,
    a_commit,
    a_job,
    a_plan,
    a_pod,
)
from deciding import NOON, created, decide
from distillchain_api.graph import Plan
from distillchain_api.resource.status import ChainStatus
from distillchain_operator.actions import Action, CreateJob, DeleteJob
from distillchain_operator.observed import observe
from distillchain_operator.reconcile import reconcile


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

    def reconcile(self, *, crash_after: int | None) -> None:
        """One reconcile, with the operator killed after so many of its writes."""
        observed = observe(chain_uid=CHAIN_UID, jobs=self.jobs.values(), pods=self.pods.values())
        decision = reconcile(self.plan, observed, previous=self.status, now=NOON)
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
                assert set(stage.needs) <= self.answered, "started before what it needs was committed"
                job = a_job(self.plan, action.stage)
                self.jobs[name] = job
                self.started.append(action.stage)
        elif isinstance(action, DeleteJob):
            self.jobs.pop(action.name, None)
            self.pods = {key: pod for key, pod in self.pods.items() if not key.startswith(action.name)}

    def make_pod(self) -> None:
        for name, job in self.jobs.items():
            if name not in self.pods and "conditions" not in job["status"]:
                self.pods[name] = a_pod(job)
                job["status"]["active"] = 1

    def commit_pod(self) -> None:
        """The first of the pods that run ends."""
        for name, pod in list(self.pods.items())[::-1]:
            job = self.jobs.get(name)
            if job is not None and pod["status"]["phase"] == "Running":
                stage = self.plan.stage(job["metadata"]["labels"]["distillchain.io/stage"])
                assert stage is not None
                self.answered.add(stage.name)
                self.pods[name] = a_pod(job, phase="Succeeded", exit_code=0, message=a_commit(stage).to_json())
                return

    def complete_job(self) -> None:
        for name, pod in self.pods.items():
            if pod["status"]["phase"] == "Succeeded" and name in self.jobs:
                done = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T12:00:00Z"}
                self.jobs[name]["status"] = {"succeeded": 1, "conditions": [done]}

    def forget_finished_jobs(self) -> None:
        """A TTL, or a user who deletes them after the status was written."""
        for entry in self.status.stages:
            if entry.phase == "Committed" and entry.job:
                self.jobs.pop(entry.job, None)
                self.pods.pop(entry.job, None)


STEPS = st.one_of(
    st.sampled_from(["make_pod", "commit_pod", "complete_job", "forget_finished_jobs"]),
    st.tuples(st.just("reconcile"), st.sampled_from([None, 0, 1, 2])),
)


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


def run_to_the_end(plan: Plan, steps: list[Any]) -> World:
    """The world after these steps, and then after as many as the chain needs."""
    world = World(plan)
    for step in steps:
        if isinstance(step, tuple):
            world.reconcile(crash_after=step[1])
        else:
            getattr(world, step)()
        running = sum(pod["status"]["phase"] == "Running" for pod in world.pods.values())
        assert running <= plan.max_parallel_jobs
    for _ in range(4 * len(plan.stages)):  # then without further disturbance
        world.reconcile(crash_after=None)
        world.make_pod()
        world.commit_pod()
        world.complete_job()
    world.reconcile(crash_after=None)
    assert world.status.phase == "Succeeded"
    return world
