"""What is wrong with `spec.evidence` of a plan: controls that cannot be trained, nothing to compare, names. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from distillchain_api.evidence_vertices import compared_stages, learns_from_labels_alone
from distillchain_api.faults import Fault, expected
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.evidence import Control
from distillchain_api.resource.hidden import HiddenMSE
from distillchain_api.resource.spec import DistillationChain
from distillchain_api.resource.stage import Stage
from distillchain_api.vertices import PlannedStage

MAX_VERTICES = 100
"""Each has an entry in status, of up to 5 KB, and etcd takes 1.5 MB."""


def evidence_faults(plan: Plan) -> Iterator[Fault]:
    """What is wrong with the evidence that a plan is asked for; nothing if it is asked for none."""
    asked = plan.chain.spec.evidence
    if asked is None:
        return
    found = list(_refused_controls(plan))
    if found:
        yield from _control_faults(found, _other_evidence(plan))
    elif not plan.evidence:
        yield _nothing_to_compare(plan)
    yield from _name_faults(plan)
    if len(plan.evidence) > MAX_VERTICES:
        remedy = "lower it, or write stages: Last" if asked.stages == "Every" else "lower it"
        most = f"fewer, because all controls and seeds are {len(plan.evidence)} Jobs and {MAX_VERTICES} are allowed"
        yield Fault("spec.evidence.seeds", expected(asked.seeds, most, remedy))


@dataclass(frozen=True)
class _Refusal:
    """A control that differs from a stage in more than the way to it, and why."""

    control: Control
    reason: str
    remedy: str = ""
    """What to change in the stage, if that is enough."""


def _control_faults(refusals: list[_Refusal], instead: str) -> Iterator[Fault]:
    for each in refusals:
        remedy = f"{each.remedy}, or {instead}" if each.remedy else instead
        yield Fault("spec.evidence.controls", expected(each.control, f"none for stage {each.reason}", remedy))


def _other_evidence(plan: Plan) -> str:
    """The evidence nearest to the one that is refused, as words to write; it is accepted."""
    asked = plan.chain.spec.evidence
    assert asked is not None
    all_controls: list[list[Control]] = [asked.controls, ["FromRoot"], ["Direct"]]
    all_stages: list[Literal["Last", "Every"]] = [asked.stages, "Last"]
    for stages, controls in itertools.product(all_stages, all_controls):
        evidence = asked.model_copy(update={"controls": controls, "stages": stages})
        spec = plan.chain.spec.model_copy(update={"evidence": evidence})
        other = build_plan(plan.chain.model_copy(update={"spec": spec}))
        if other.evidence and not any(_refused_controls(other)):
            words = [f"controls: [{', '.join(controls)}]"] if controls != asked.controls else []
            words += [f"stages: {stages}"] if stages != asked.stages else []
            return f"write {' and '.join(words)}"
    return "remove evidence"


def _refused_controls(plan: Plan) -> Iterator[_Refusal]:
    chain = plan.chain
    assert chain.spec.evidence is not None
    for index in compared_stages(chain):
        stage = chain.spec.stages[index]
        planned = plan.stage(stage.name)
        if planned is None or learns_from_labels_alone(planned):
            continue
        if "Direct" in chain.spec.evidence.controls and stage.student.from_teacher is not None:
            reason = f"{stage.name}, whose student starts as layers of its teacher (fromTeacher)"
            yield _Refusal("Direct", reason)
        if "FromRoot" in chain.spec.evidence.controls and index > 0:
            yield from _refused_from_root(chain, index, planned)


def _refused_from_root(chain: DistillationChain, index: int, planned: PlannedStage) -> Iterator[_Refusal]:
    stage, earlier = chain.spec.stages[index], chain.spec.stages[:index]
    other = next((each for each in earlier if each.student.from_teacher is None), None)
    if stage.student.from_teacher is not None and other is not None:
        reason = f"{stage.name}: layers of the root teacher are another model than layers of {other.name}"
        yield _Refusal("FromRoot", reason)
    if _numbers_layers(planned):
        reason = f"{stage.name}, whose distillation.hidden numbers layers of stage {earlier[-1].name}"
        yield _Refusal("FromRoot", reason, "leave the numbers out, so that they follow from each teacher")


def _numbers_layers(planned: PlannedStage) -> bool:
    """Whether the loss on hidden states names layers of one teacher."""
    distillation = planned.work_order.distillation
    hidden = distillation.hidden if distillation else None
    if hidden is None:
        return False
    return hidden.layers is not None if isinstance(hidden, HiddenMSE) else hidden.teacher_layer is not None


def _nothing_to_compare(plan: Plan) -> Fault:
    names = " and ".join(plan.chain.spec.stages[index].name for index in compared_stages(plan.chain))
    return Fault(
        "spec.evidence",
        f"no control differs from {names}: with distillation.alpha 0 a student learns from labels alone, as Direct "
        "does, and a first stage is taught by the root, as in FromRoot; raise alpha, name other controls, or remove "
        "evidence",
    )


def _name_faults(plan: Plan) -> Iterator[Fault]:
    """Stages that have the name of a vertex of the evidence, or lead to one name for two vertices."""
    seen: set[str] = set()
    for name in (vertex.name for vertex in plan.vertices):
        if name in seen:
            index = _culprit(plan.chain.spec.stages, name)
            remedy = f"{name} is a vertex of spec.evidence: rename the stage"
            field, stage = f"spec.stages[{index}].name", plan.chain.spec.stages[index]
            yield Fault(field, expected(stage.name, "another name", remedy))
        seen.add(name)


def _culprit(stages: list[Stage], name: str) -> int:
    """The stage with the longest name that the vertex's name begins with."""
    return max(range(len(stages)), key=lambda index: (name.startswith(stages[index].name), len(stages[index].name)))
