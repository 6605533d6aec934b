"""A chain with controls, and a cluster that carries out what the operator decides about it."""

from __future__ import annotations

from typing import Any

from chain_builders import a_committed_job, a_plan, retrying
from deciding import a_failed_job, decide
from distillchain_api.failures import FailureClass
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.status import ChainStatus, Condition
from distillchain_api.resource.teacher_pass import TeacherPass
from distillchain_operator.decide.actions import Decision

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
