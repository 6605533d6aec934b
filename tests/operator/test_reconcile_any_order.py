"""The chain ends well for any order of events and any crash of the operator."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chain_builders import (
    CHAIN_UID,
    a_commit,
    a_job,
    a_plan,
    a_pod,
)
from deciding import NOON
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
        for name, pod in self.pods.items():
            job = self.jobs.get(name)
            if job is not None and pod["status"]["phase"] == "Running":
                stage = self.plan.stage(job["metadata"]["labels"]["distillchain.io/stage"])
                assert stage is not None
                self.pods[name] = a_pod(job, phase="Succeeded", exit_code=0, message=a_commit(stage).to_json())

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


PLAN = a_plan(stages=["mini", "tiny", "femto"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEPS, max_size=40))
def test_any_order_of_events_and_crashes_creates_one_job_per_stage_in_order(steps: list[Any]):
    world = World(PLAN)
    for step in steps:
        if isinstance(step, tuple):
            world.reconcile(crash_after=step[1])
        else:
            getattr(world, step)()
        assert sum(pod["status"]["phase"] == "Running" for pod in world.pods.values()) <= 1
    for _ in range(4 * len(PLAN.stages)):  # then without further disturbance
        world.reconcile(crash_after=None)
        world.make_pod()
        world.commit_pod()
        world.complete_job()
    world.reconcile(crash_after=None)
    assert world.started == [stage.name for stage in PLAN.stages]
    assert world.status.phase == "Succeeded"
