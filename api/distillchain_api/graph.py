"""What a chain asks for as a graph: a vertex for each Job, with its digest, its work order and where it runs.

Pure: the spec alone decides, so operator, `distillchain plan` and `distillchain run` can never disagree. A vertex names
what it needs; its position in the list only breaks ties.
"""

from __future__ import annotations

from dataclasses import dataclass

from distillchain_api.evidence_vertices import evidence_vertices
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.vertices import (
    TRAINER_CONTAINER,
    PlannedStage,
    after_pass,
    fine_tune_stage,
    pass_stage,
    student_stage,
)

__all__ = ["TRAINER_CONTAINER", "Plan", "PlannedStage", "build_plan"]


@dataclass(frozen=True)
class Plan:
    """The graph of one chain.

    Attributes:
        stages: the vertices of the chain itself; each is after those that it needs.
        evidence: the vertices beside it: controls, further seeds and the verdict, which is the last one.
        max_parallel_jobs: Jobs of the chain at the same time.
    """

    chain: DistillationChain
    stages: tuple[PlannedStage, ...]
    evidence: tuple[PlannedStage, ...] = ()
    max_parallel_jobs: int = 1

    @property
    def vertices(self) -> tuple[PlannedStage, ...]:
        """All of them; each is after those that it needs."""
        return (*self.stages, *self.evidence)

    @property
    def students(self) -> tuple[PlannedStage, ...]:
        """The vertices of the chain that make a model."""
        return tuple(stage for stage in self.stages if not stage.is_pass)

    @property
    def verdict(self) -> PlannedStage | None:
        """The vertex that compares the chain with its controls; None without `spec.evidence`."""
        return self.evidence[-1] if self.evidence else None

    def stage(self, name: str) -> PlannedStage | None:
        """The vertex of that name."""
        return next((stage for stage in self.vertices if stage.name == name), None)


def build_plan(chain: DistillationChain) -> Plan:
    """The plan of a valid chain. Same spec, same plan."""
    stages: list[PlannedStage] = []
    # The teacher of the first stage is there already, unless the chain fine-tunes it as stage zero.
    before = None
    if chain.spec.teacher.fine_tune is not None:
        before = fine_tune_stage(chain)
        stages.append(before)
    for index, stage in enumerate(chain.spec.stages):
        final = index == len(chain.spec.stages) - 1
        planned = student_stage(
            chain, stage, field_path=f"spec.stages[{index}]", before=before, earlier=tuple(stages), final=final
        )
        if stage.teacher_pass is not None:
            asked = pass_stage(chain, stage, stage.teacher_pass, planned)
            stages.append(asked)
            planned = after_pass(planned, asked)
        stages.append(planned)
        before = planned
    return Plan(
        chain=chain,
        stages=tuple(stages),
        evidence=evidence_vertices(chain, stages),
        max_parallel_jobs=chain.spec.max_parallel_jobs,
    )
