"""The vertices beside a chain: its stages with other seeds, the controls, and the verdict on them. Pure.

A control is an ordinary vertex with an ordinary digest. So it is shared with every chain that has the same student, and
one that equals a stage of this chain is that stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from distillchain_api import CONTRACT_VERSION
from distillchain_api.digests import sha256_of
from distillchain_api.resource.evidence import Control
from distillchain_api.resource.export import Export
from distillchain_api.resource.gate import Gate
from distillchain_api.resource.parallelism import Parallelism, ResolvedParallelism
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.resource.stage import TEACHER_STAGE, Stage
from distillchain_api.resource.teachers import StageTeacher
from distillchain_api.resource.tracking import Tracking
from distillchain_api.resource.training import TrainingOverrides
from distillchain_api.values import StageDigest
from distillchain_api.vertices import PlannedStage, after_pass, labels_order, pass_stage, place, student_stage
from distillchain_api.wire.evidence import ComparedStage, ComparedStudent, EvidenceOrder

VERDICT = "evidence"
"""Name of the vertex that compares all students."""
PART = {"Direct": "direct", "FromRoot": "from-root"}
"""A control in the names of its vertices: `tiny-direct-s1`."""
# After the stages of the chain (0) and its exports (100 in the operator).
CONTROL_PRIORITY = 200
VERDICT_PRIORITY = 300
MAX_SEED = 2**31 - 1
# The verdict reads predictions and computes for seconds. It asks for no GPU, whatever the pods of stages have.
VERDICT_RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}}


def student_name(stage: str, control: Control | None, number: int) -> str:
    """`tiny-s2`, `tiny-direct-s1` or `tiny-from-root-s1`; `number` counts the seeds from 1."""
    parts = [stage, *([PART[control]] if control else []), f"s{number}"]
    return "-".join(parts)


def evidence_vertices(chain: DistillationChain, own: Sequence[PlannedStage]) -> tuple[PlannedStage, ...]:
    """The vertices that `spec.evidence` asks for; the verdict is the last one. Empty if it asks for none.

    Args:
        own: the vertices of the chain itself.
    """
    if chain.spec.evidence is None:
        return ()
    beside = _Beside(chain, {stage.digest: stage for stage in own})
    stages = [compared for index in compared_stages(chain) if (compared := _compare(beside, own, index))]
    # A chain without anything to compare is refused (evidence_check.py); without this it would fail here.
    if not stages:
        return ()
    last = next(planned for planned in own if planned.name == stages[-1].stage)
    order = EvidenceOrder(stages=stages, chain_digest=own[-1].digest, smallest_gain=chain.spec.evidence.smallest_gain)
    return (*beside.made, _verdict(last, order))


def compared_stages(chain: DistillationChain) -> range:
    """Indices of the stages that are compared with controls."""
    assert chain.spec.evidence is not None
    count = len(chain.spec.stages)
    return range(count) if chain.spec.evidence.stages == "Every" else range(count - 1, count)


def learns_from_labels_alone(planned: PlannedStage) -> bool:
    """Whether the stage is its own control `Direct`, so that there is nothing to compare."""
    distillation = planned.work_order.distillation
    return distillation is not None and distillation.alpha == 0 and distillation.hidden is None


def out_of_reach(beside: Sequence[PlannedStage], phases: Mapping[str, str]) -> set[str]:
    """Names of the students beside the chain that failed, or that wait for a vertex that did, also through others.

    Args:
        beside: the plan's `evidence`; each vertex is after those that it needs.
        phases: of all vertices that have one, by name.
    """
    lost = {name for name, phase in phases.items() if phase == "Failed"}
    for vertex in beside:
        if not vertex.is_verdict and phases.get(vertex.name) != "Committed" and lost.intersection(vertex.needs):
            lost.add(vertex.name)
    return lost.intersection(vertex.name for vertex in beside)


def without_failed(verdict: PlannedStage, failed: set[str]) -> PlannedStage:
    """The verdict on the students that are there: another vertex with a digest of its own.

    Args:
        verdict: any other vertex is returned as it is.
        failed: names of vertices that have no student.
    """
    order = verdict.work_order.evidence
    if order is None:
        return verdict
    missing = [student.name for stage in order.stages for student in stage.students if student.name in failed]
    if not missing:
        return verdict
    stages = [
        stage.model_copy(update={"students": [each for each in stage.students if each.name not in failed]})
        for stage in order.stages
    ]
    left = order.model_copy(update={"stages": stages, "missing": missing})
    digest = _verdict_digest(verdict.work_order.task.metric, left)
    return replace(
        verdict,
        digest=digest,
        work_order=verdict.work_order.model_copy(update={"evidence": left, "digest": digest}),
        needs=_names(left),
    )


@dataclass
class _Beside:
    """The vertices made so far.

    Attributes:
        known: those of the chain and those made, by digest: one student is never trained twice.
    """

    chain: DistillationChain
    known: dict[StageDigest, PlannedStage]
    made: list[PlannedStage] = field(default_factory=list)

    def add(self, planned: PlannedStage) -> PlannedStage:
        """The vertex, or the one that has its digest already."""
        if planned.digest not in self.known:
            priority = CONTROL_PRIORITY
            self.known[planned.digest] = replace(planned, is_evidence=True, priority=priority)
            self.made.append(self.known[planned.digest])
        return self.known[planned.digest]


def _compare(beside: _Beside, own: Sequence[PlannedStage], index: int) -> ComparedStage | None:
    """A stage with its controls; None if there is none that differs from it."""
    chain, stage = beside.chain, beside.chain.spec.stages[index]
    assert chain.spec.evidence is not None
    planned = next(vertex for vertex in own if vertex.name == stage.name)
    if learns_from_labels_alone(planned):
        return None
    arms: dict[Control | None, list[ComparedStudent]] = {None: []}
    # Of a first stage, the root is the teacher already.
    arms |= {control: [] for control in chain.spec.evidence.controls if control == "Direct" or index > 0}
    for number in range(1, chain.spec.evidence.seeds + 1):
        seed = (planned.work_order.training.seed + number - 1) % (MAX_SEED + 1)
        for control, students in arms.items():
            name = student_name(stage.name, control, number)
            seeded = _variant(stage, name, seed)
            if control is None:
                made = planned if number == 1 else _taught(beside, own, index, seeded)
            elif control == "FromRoot":
                made = _from_root(beside, own, index, seeded)
            else:
                made = beside.add(_direct(chain, planned, seeded))
            students.append(ComparedStudent(name=made.name, digest=made.digest, control=control, seed=seed))
    own_digests = {student.digest for student in arms[None]}
    controls = [students for control, students in arms.items() if control and students[0].digest not in own_digests]
    if not controls:
        return None
    return ComparedStage(stage=stage.name, students=[*arms[None], *(each for arm in controls for each in arm)])


def _variant(stage: Stage, name: str, seed: int) -> Stage:
    """The stage under another name and with another seed, without gate and export: it serves the comparison alone."""
    training = (stage.training or TrainingOverrides()).model_copy(update={"seed": seed})
    update = {"name": name, "training": training, "gate": Gate(), "export": Export()}
    return stage.model_copy(update=update)


def _taught(beside: _Beside, own: Sequence[PlannedStage], index: int, variant: Stage) -> PlannedStage:
    """The stage with another seed and the same teachers."""
    names = [TEACHER_STAGE, *(stage.name for stage in beside.chain.spec.stages)]
    before = next((vertex for vertex in own if vertex.name == names[index]), None)
    return _add_with_pass(beside, own, index, variant, before, pass_name=variant.name)


def _from_root(beside: _Beside, own: Sequence[PlannedStage], index: int, variant: Stage) -> PlannedStage:
    """The student taught by the root, which takes the place of all stages among its teachers."""
    teachers = variant.teachers
    if teachers is not None:
        weight = sum(teacher.weight for teacher in teachers if teacher.stage)
        root = StageTeacher(stage=TEACHER_STAGE).model_copy(update={"weight": weight})
        teachers = [root, *(teacher for teacher in teachers if teacher.model)]
    before = next((vertex for vertex in own if vertex.name == TEACHER_STAGE), None)
    stage = beside.chain.spec.stages[index].name
    variant = variant.model_copy(update={"teachers": teachers})
    return _add_with_pass(beside, own, index, variant, before, pass_name=f"{stage}-{PART['FromRoot']}")


def _add_with_pass(
    beside: _Beside,
    own: Sequence[PlannedStage],
    index: int,
    variant: Stage,
    before: PlannedStage | None,
    *,
    pass_name: str,
) -> PlannedStage:
    planned = student_stage(
        beside.chain, variant, field_path=f"spec.stages[{index}]", before=before, earlier=own, final=False
    )
    if planned.digest in beside.known:
        return beside.known[planned.digest]
    planned = _without_root_gate(planned)
    if variant.teacher_pass is not None:
        named = variant.model_copy(update={"name": pass_name})
        planned = after_pass(planned, beside.add(pass_stage(beside.chain, named, variant.teacher_pass, planned)))
    return beside.add(planned)


def _without_root_gate(planned: PlannedStage) -> PlannedStage:
    """Of a root teacher that misses its gate, the chain itself says so."""
    order = planned.work_order
    assert order.teacher is not None
    teacher = order.teacher.model_copy(update={"gate": None})
    return replace(planned, work_order=order.model_copy(update={"teacher": teacher}))


def _direct(chain: DistillationChain, planned: PlannedStage, variant: Stage) -> PlannedStage:
    """The student that learns from labels alone: it has no teacher, so chains with other teachers share it."""
    template, order = chain.spec.template, planned.work_order
    seed = variant.training.seed
    labels = labels_order(
        chain,
        name=variant.name,
        field=f"{order.field}.student",
        # With its unlabelled text, if it has any: the trainer counts it, so that the control has as many steps.
        task=order.task,
        student=order.student,
        training=order.training.model_copy(update={"seed": seed}),
    )
    own = {"micro_batch_size": order.micro_batch_size, "save_interval_s": order.save_interval_s}
    # Messages about placement name the field of the stage.
    placed = place(labels.model_copy(update={**own, "field": order.field}), template, stage=variant)
    return replace(placed, work_order=placed.work_order.model_copy(update={"field": labels.field}))


def _verdict(last: PlannedStage, order: EvidenceOrder) -> PlannedStage:
    """The vertex that compares all students: where the last stage runs, but without GPUs."""
    digest = _verdict_digest(last.work_order.task.metric, order)
    update = {
        "stage": VERDICT,
        "field": "spec.evidence",
        "digest": digest,
        "evidence": order,
        # These are of a student.
        "teacher": None,
        "further_teachers": [],
        "distillation": None,
        "gate": Gate(),
        "export": Export(),
        "tracking": Tracking(),
        "final": False,
        "micro_batch_size": None,
        "parallelism": ResolvedParallelism(),
    }
    return replace(
        last,
        name=VERDICT,
        digest=digest,
        work_order=last.work_order.model_copy(update=update),
        resources=VERDICT_RESOURCES,
        parallelism=Parallelism(processes_per_node=1),
        parallelism_field="spec.evidence",
        gpus=0,
        needs=_names(order),
        priority=VERDICT_PRIORITY,
        is_evidence=True,
    )


def _verdict_digest(metric: str, order: EvidenceOrder) -> StageDigest:
    """Names count too, because the verdict has them in its sentences."""
    return StageDigest(sha256_of({"contract": CONTRACT_VERSION, "metric": metric, "evidence": order.to_document()}))


def _names(order: EvidenceOrder) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_students(order)))


def _students(order: EvidenceOrder) -> Iterator[str]:
    for stage in order.stages:
        yield from (student.name for student in stage.students)
